import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_client import TOKEN, ClientError

from factories import NETWORK, make_conditional_pipeline, make_layout, make_network, make_pipeline
from pdiff_hf import BaseModel

REPO = "user/pdiff-tiny"

PUSH = "from pdiff_hf.pipelines.push import push_pipeline; result = push_pipeline(folder, repo, **options)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved pipeline with what a run leaves beside it."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = make_pipeline()
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    pipeline.base_model = base.save_weights(make_network(), folder / "source")
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.to(torch.float16).save_pretrained(folder / "pipeline", variant="fp16")
    (folder / "pipeline" / "README.md").write_text("---\nlibrary_name: diffusers\n---\n# Made\n")
    (folder / "pipeline" / "checkpoint-400").mkdir()
    for name in ("checkpoint-400/optimizer.bin", "train_log.jsonl", ".model_index.json.1.partial", "token"):
        (folder / "pipeline" / name).write_text("not to be pushed")
    return folder / "pipeline"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "pipeline")


def push(client, folder, repo=REPO, **options):
    return client(PUSH, folder=folder, repo=repo, options=options)


LOAD = """
import torch
from pdiff_hf import PDiffPipeline
pipe = PDiffPipeline.from_pretrained(repo, **options)
pipe.set_progress_bar_config(disable=True)
out = pipe(batch_size=1, num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").parameters
model = pipe.build_model(out[0])
result = {"vector": out[0].tolist(), "logits": model(torch.ones(1, 1, 2, 2)).tolist(), "dtype": str(pipe.unet.dtype),
          "name": pipe.config._name_or_path}
"""


def test_pushed_pipeline_loads_with_its_base_model(hub, client, folder):
    url = push(client, folder)
    assert url == f"{hub.url}/{REPO}/commit/{hub.repos['model', REPO].branches['main']}"
    local = client(LOAD, repo=folder, options={})
    loaded = client(LOAD, repo=REPO, options={})
    assert loaded["vector"] == local["vector"] and loaded["logits"] == local["logits"]
    assert loaded["name"] == REPO


def test_pushed_pipeline_with_conditions_draws_for_them(hub, client, tmp_path):
    make_conditional_pipeline().save_pretrained(tmp_path / "pipeline")
    push(client, tmp_path / "pipeline")
    load = """
import torch
from pdiff_hf import PDiffPipeline
pipe = PDiffPipeline.from_pretrained(repo)
pipe.set_progress_bar_config(disable=True)
options = {"num_inference_steps": 2, "generator": torch.manual_seed(0), "output_type": "pt"}
result = pipe(condition={"classes": ["cat"]}, guidance_scale=2.0, **options).parameters[0].tolist()
"""
    assert client(load, repo=REPO) == client(load, repo=tmp_path / "pipeline")


def test_only_what_belongs_to_a_pipeline_is_pushed_in_one_commit(hub, client, folder):
    push(client, folder)
    weights = {
        f"{name}/diffusion_pytorch_model{variant}.safetensors"
        for name in ("autoencoder", "unet")
        for variant in ("", ".fp16")
    }
    configs = {"autoencoder/config.json", "unet/config.json", "scheduler/scheduler_config.json"}
    root = {"model_index.json", "pipeline.py", "README.md", "base/model.safetensors"}
    assert set(hub.files(REPO)) == weights | configs | root
    assert hub.count("POST", "/commit/") == 1
    assert hub.files(REPO)["unet/config.json"] == (folder / "unet" / "config.json").read_bytes()


def test_branch_privacy_variant_dtype_and_pull_request(hub, client, folder):
    push(client, folder, private=True)
    assert hub.repos["model", REPO].private
    push(client, folder, revision="second")
    assert set(hub.repos["model", REPO].branches) == {"main", "second"}
    (folder / "train_config.json").write_text("{}")
    assert push(client, folder, create_pr=True) == f"{hub.url}/{REPO}/discussions/1"
    proposed = hub.files(REPO, revision="refs/pr/1")
    assert proposed == {**hub.files(REPO), "train_config.json": b"{}"}
    loaded = client(LOAD, repo=REPO, options={"revision": "second"})
    half = client(LOAD.replace("**options", "variant='fp16', torch_dtype=torch.float16"), repo=REPO)
    assert half["dtype"] == "torch.float16" and loaded["dtype"] == "torch.float32"
    assert hub.count("GET", r"/resolve/.*fp16") == 2
    # One half-precision denoiser and decoder away, parameters are near, but not equal.
    assert half["vector"] != loaded["vector"]
    torch.testing.assert_close(torch.tensor(half["vector"]), torch.tensor(loaded["vector"]), atol=0.05, rtol=0)


def test_pushed_public_cannot_be_made_private_by_pushing(hub, client, folder):
    push(client, folder)
    with pytest.raises(ClientError, match="is public already"):
        push(client, folder, private=True)


def test_pushing_again_sends_nothing_and_a_changed_file_alone(hub, client, folder):
    push(client, folder)
    before = hub.repos["model", REPO].branches["main"]
    uploads = hub.count("PUT", "/objects/")
    push(client, folder)
    assert hub.repos["model", REPO].branches["main"] == before
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n# Better\n")
    push(client, folder)
    assert hub.files(REPO)["README.md"].endswith(b"# Better\n") and hub.count("PUT", "/objects/") == uploads


def test_readme_that_a_person_edited_is_kept(hub, client, folder):
    push(client, folder)
    hub.put(REPO, {"README.md": b"---\nlibrary_name: diffusers\n---\n# Mine\n"})
    (folder / "train_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n# Generated\n")
    warned = client(f"import warnings\nwith warnings.catch_warnings(record=True) as caught:\n    {PUSH}\n"
        "result = [str(warning.message) for warning in caught]", folder=folder, repo=REPO, options={})  # fmt: skip
    assert any("README.md was edited on the Hub and is kept" in text for text in warned)
    assert hub.files(REPO)["README.md"].endswith(b"# Mine\n") and hub.files(REPO)["train_config.json"] == b"{}"


def test_cut_upload_leaves_nothing_visible_and_is_resumed(hub, client, folder):
    # The second of the large files never arrives; huggingface_hub tries six times.
    victim = hub_objects(folder)[1]
    hub.fault("PUT", victim, cut=100)
    with pytest.raises(ClientError, match="push again: what was uploaded is not sent twice"):
        push(client, folder)
    assert hub.files(REPO) == {} and client.slept <= 30
    hub.faults.clear()
    sent = len(hub.objects)
    assert 0 < sent < len(hub_objects(folder))
    hub.log.clear()
    push(client, folder)
    assert hub.count("PUT", "/objects/") == len(hub_objects(folder)) - sent
    assert client(LOAD, repo=REPO, options={})["name"] == REPO


def hub_objects(folder):
    from pdiff_hf.files import sha256_file

    return sorted({sha256_file(path) for path in folder.rglob("*.safetensors")})


def test_commit_that_fails_leaves_the_last_one_visible(hub, client, folder):
    push(client, folder)
    before = hub.files(REPO)
    (folder / "train_config.json").write_text("{}")
    hub.fault("POST", "/commit/", status=500, times=1)
    with pytest.raises(ClientError, match="the Hub has a fault"):
        push(client, folder)
    assert hub.files(REPO) == before


def test_pushed_in_the_meantime_is_a_conflict_and_no_mixture(hub, client, folder):
    push(client, folder)
    (folder / "train_config.json").write_text("{}")
    hub.fault("POST", "/commit/", times=1, then=lambda: hub.put(REPO, {"unet/config.json": b"{}"}))
    with pytest.raises(ClientError, match="somebody else is changing it"):
        push(client, folder)
    assert "train_config.json" not in hub.files(REPO)
    push(client, folder)
    assert hub.files(REPO)["unet/config.json"] == (folder / "unet" / "config.json").read_bytes()


@pytest.mark.parametrize("missing", ["unet", "model_index.json", "base/model.safetensors"])
def test_incomplete_folder_is_not_pushed(hub, client, folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ClientError, match="expected"):
        push(client, folder)
    assert not hub.repos


def test_changed_base_weights_are_not_pushed(hub, client, folder):
    path = folder / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ClientError, match="was changed or is damaged"):
        push(client, folder)
    assert not hub.repos


def test_push_to_hub_is_the_same_way_and_makes_a_card(hub, client, folder):
    code = "from pdiff_hf import PDiffPipeline\nresult = PDiffPipeline.from_pretrained(folder).push_to_hub(repo)"
    assert client(code, folder=folder, repo=REPO).startswith(f"{hub.url}/{REPO}/commit/")
    assert b"PDiffPipeline" in hub.files(REPO)["README.md"] and hub.count("POST", "/commit/") == 1
    assert client(LOAD, repo=REPO, options={})["vector"] == client(LOAD, repo=folder, options={})["vector"]


def test_pushed_on_from_the_hub_it_keeps_its_results(hub, client, folder):
    results = Path(__file__).parents[1] / "golden" / "metrics.json"
    shutil.copyfile(results, folder / "metrics.json")
    (folder / "train_config.json").write_text('{"diffusion": {"steps": 600}}')
    push(client, folder)
    code = "from pdiff_hf import PDiffPipeline\nresult = PDiffPipeline.from_pretrained(repo).push_to_hub(other)"
    client(code, repo=REPO, other="user/mine")
    card, verdict = hub.files("user/mine")["README.md"].decode(), json.loads(results.read_text())["verdict"]
    assert verdict in card and "model-index" in card and '"steps": 600' in card
    assert hub.files("user/mine")["metrics.json"] == results.read_bytes()


def test_plain_diffusers_loads_the_shim_and_finds_the_base_model(hub, client, folder):
    push(client, folder)
    plain = LOAD.replace("from pdiff_hf import PDiffPipeline", "from diffusers import DiffusionPipeline")
    plain = plain.replace(
        "PDiffPipeline.from_pretrained(repo",
        "DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True",
    ).replace("DDiffusion", "Diffusion")
    loaded = client(plain, repo=REPO, options={})
    assert loaded["logits"] == client(LOAD, repo=REPO, options={})["logits"]


STANDALONE = """
import importlib.util, json, sys, torch
assert importlib.util.find_spec("pdiff_hf") is None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], revision="standalone", trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
out = pipe(batch_size=1, num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").parameters
model = pipe.build_model(out[0])
state = pipe(batch_size=1, num_inference_steps=2).parameters[0]
assert "pdiff_hf" not in sys.modules
print(json.dumps({"vector": out[0].tolist(), "logits": model(torch.ones(1, 1, 2, 2)).tolist(), "tensors": len(state)}))
"""


@pytest.mark.slow
def test_standalone_branch_loads_without_this_package(hub, client, folder):
    client(
        "from pdiff_hf.pipelines.card import write_pipeline_card\nimport os\nos.remove(folder + '/README.md')\n"
        "result = str(write_pipeline_card(folder))", folder=folder
    )  # fmt: skip
    push(client, folder, standalone=True)
    exported = hub.files(REPO, revision="standalone")
    assert {"pipeline_pdiff.py", "autoencoder/autoencoder_pdiff.py"} <= set(exported)
    assert "pipeline.py" not in exported and "pipeline.py" in hub.files(REPO)
    code = b"\n".join(data for name, data in exported.items() if name.endswith(".py"))
    assert not re.search(rb"^\s*(from|import) (\.|pdiff_hf)", code, re.MULTILINE)
    # Without `site` the editable install's .pth is not read; the other packages are found by PYTHONPATH.
    packages = Path(torch.__file__).parents[1]
    environment = client("import os; result = dict(os.environ)") | {"PYTHONPATH": str(packages)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", STANDALONE, REPO],
        env=environment, cwd=client.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    alone, expected = json.loads(run.stdout.splitlines()[-1]), client(LOAD, repo=REPO, options={})
    assert alone["vector"] == expected["vector"] and alone["logits"] == expected["logits"]
    assert alone["tensors"] == len(make_layout().tensors)
    # The card's snippet runs there as well.
    snippet = exported["README.md"].decode().partition("```python\n")[2].partition("```")[0]
    assert "pdiff_hf" not in snippet
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"{snippet}\nassert len(out.parameters) == 10"],
        env=environment, cwd=client.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def test_main_branch_class_refuses_the_standalone_branch(hub, client, folder):
    push(client, folder, standalone=True)
    with pytest.raises(ClientError, match="it carries its own code, take the main branch"):
        client(LOAD, repo=REPO, options={"revision": "standalone"})


def test_token_is_nowhere(hub, client, folder):
    push(client, folder, token=TOKEN)
    client(LOAD, repo=REPO, options={"token": TOKEN})
    hub.fault("POST", "/api/repos/create", status=418, body=json.dumps({"error": f"no {TOKEN}"}).encode())
    with pytest.raises(ClientError, match="refuses the request") as caught:
        push(client, folder, repo="user/other", token=TOKEN)
    assert TOKEN not in caught.value.message and TOKEN not in caught.value.traceback
    assert TOKEN not in client.output.read_text()
    written = [path for root in (client.folder, folder) for path in root.rglob("*") if path.is_file()]
    assert len(written) > 10 and not any(TOKEN.encode() in path.read_bytes() for path in written)
