import json
import sys

import pytest

from pdiff_hf import trust
from pdiff_hf.base_model import BaseModel

CODE = """
from torch import nn
def mlp(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets_of_trust.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("own_nets_of_trust", None)


@pytest.mark.parametrize("name", ["own_nets_of_trust.py:mlp", "own_nets_of_trust:mlp"])
def test_call_that_was_typed_is_run_again_unasked(folder, name):
    reference = BaseModel.imported(name, width=5)
    with pytest.raises(ValueError, match=r"whose code alone is run unasked; .* give trusted_imports="):
        reference.build()
    trust.remember(name, {"width": 5})
    assert reference.build()[0].out_features == 5
    # With other arguments, it is another call.
    with pytest.raises(ValueError, match="run unasked"):
        BaseModel.imported(name, width=6).build()
    # So it is with other code, which another folder has.
    (folder / "elsewhere").mkdir()
    (folder / "own_nets_of_trust.py").rename(folder / "elsewhere" / "own_nets_of_trust.py")
    with pytest.raises(ValueError, match="run unasked"):
        reference.build()


def test_code_that_is_not_there_is_not_remembered(folder):
    trust.remember("nothing_of_the_kind:mlp", {})
    assert not trust.is_remembered("nothing_of_the_kind:mlp", {})
    assert not trust.trusted_file().exists()


def test_home_that_cannot_be_written_to_is_no_error(folder, monkeypatch):
    (folder / "file").write_text("x")
    monkeypatch.setattr(trust, "trusted_file", lambda: folder / "file" / "trusted.json")
    trust.remember("own_nets_of_trust:mlp", {})
    assert not trust.is_remembered("own_nets_of_trust:mlp", {})


@pytest.mark.parametrize("text", ["{", "{}", '"x"', "[1]"])
def test_damaged_memory_trusts_nobody(text):
    trust.trusted_file().parent.mkdir(parents=True, exist_ok=True)
    trust.trusted_file().write_text(text)
    assert not trust.is_remembered("own_nets_of_trust:mlp", {})
    trust.remember("own_nets_of_trust:mlp", {})
    assert trust.is_remembered("own_nets_of_trust:mlp", {})
    assert json.loads(trust.trusted_file().read_text())[-1]["name"] == "own_nets_of_trust:mlp"


def test_finding_the_file_runs_no_code(folder):
    (folder / "loud_package").mkdir()
    (folder / "loud_package" / "__init__.py").write_text("raise SystemExit('imported')")
    assert not trust.is_remembered("loud_package.nets:mlp", {})
    trust.remember("loud_package.nets:mlp", {})
    assert trust.is_remembered("loud_package.nets:mlp", {}) and "loud_package" not in sys.modules


def test_typed_base_is_trusted_from_then_on(folder, pdiff):
    import torch

    (folder / "nets").mkdir()
    namespace = {}
    exec(CODE, namespace)
    for index in range(4):
        torch.manual_seed(index)
        torch.save(namespace["mlp"]().state_dict(), folder / "nets" / f"{index}.pt")
    base = ("--base", "import:./own_nets_of_trust.py:mlp")
    code, out, _ = pdiff("import", "nets/0.pt", "nets/1.pt", "--out", "runs/two", *base)
    assert code == 0 and out.splitlines()[-1] == "To be trained on, they are too few: 3 are the fewest."
    code, out, _ = pdiff("import", "nets", "--out", "runs/a/dataset", *base, "--independent")
    assert code == 0 and out.splitlines()[-2] == "Next: pdiff train runs/a/dataset --out runs/a"
    # Of an untrusted one, training refuses at its end, where the base model is built.
    assert pdiff("inspect", "runs/a/dataset")[0] == 0
    code, out, _ = pdiff("train", "runs/a/dataset", "--out", "runs/a", "--set", "diffusion.steps=2")
    assert code == 0 and out.splitlines()[-1] == "Next: pdiff generate runs/a/pipeline --out runs/a/generated"
    code, out, _ = pdiff("generate", "runs/a/pipeline", "--out", "runs/a/generated", "--num-samples", "3")
    assert code == 0 and "model.load_state_dict(safetensors.torch.load_file('runs/a/generated/00000" in out
    assert out.splitlines()[-1] == "Next: pdiff evaluate runs/a --task …"
    from safetensors.torch import load_file

    network = namespace["mlp"]()
    network.load_state_dict(load_file("runs/a/generated/00000.safetensors"), strict=True)
    layout = json.loads((folder / "runs/a/dataset/layout.json").read_text())
    assert layout["base_model"]["name"] == "own_nets_of_trust.py:mlp"
