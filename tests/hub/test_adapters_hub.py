"""Adapters come from the Hub, a generator of adapters goes to it, and an adapter of that loads with plain peft."""

import json
import sys

import pytest
from hub_client import TOKEN

pytest.importorskip("peft")

from adapters.adapter_cases import CONFIG, lora, make_adapter, make_base, probe
from pdiff_hf import PDiffPipeline
from pdiff_hf.pipelines.network_folder import load_generated
from processes import run
from small_datasets import snapshot

# No module of this package is imported: only what people have who load an adapter.
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
tokens = (torch.arange(16).reshape(2, 8) * 7 + 3) % 60 + 1
logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
assert not any(name.partition(".")[0] == "pdiff_hf" for name in sys.modules)
print()
print("logits", json.dumps(logits.tolist()))
"""


def logits_in(output: str) -> list:
    (line,) = (line for line in output.splitlines() if line.startswith("logits"))
    return json.loads(line.removeprefix("logits"))


@pytest.mark.slow
def test_the_whole_way(hub, tmp_path, monkeypatch, pdiff):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    base, labels = make_base(tmp_path, "bert"), {}
    for number in range(8):
        folder = make_adapter(tmp_path / "adapters" / str(number), base, lora(lora_alpha=2 + number % 2), number)
        files = {path.relative_to(folder).as_posix(): data for path, data in snapshot(folder).items()}
        hub.put(f"someone/task{number}", files)
        labels[f"someone/task{number}"] = "odd" if number % 2 else "even"
    (tmp_path / "list.txt").write_text("\n".join(labels))
    (tmp_path / "tasks.json").write_text(json.dumps(labels))
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}

    def call(*arguments):
        code, out = run(sys.executable, *arguments, **environment, HF_TOKEN=TOKEN)
        assert code == 0, out
        return out

    # 1. A collection on the Hub is a dataset, and a dataset a generator
    given = ("--peft", "--base", base, "--conditions", tmp_path / "tasks.json", "--out", tmp_path / "dataset")
    said = call("-m", "pdiff_hf", "import", tmp_path / "list.txt", *given)
    assert "8 adapters of 1,189 parameters" in said
    code, _, error = pdiff(
        *("train", tmp_path / "dataset", "--out", tmp_path / "run", "--set", "autoencoder.kind=pca"),
        *("--set", "diffusion.steps=5", "--set", "diffusion.lr_warmup_steps=0"),
    )
    assert code == 0, error
    code, _, error = pdiff(
        *("generate", tmp_path / "run" / "pipeline", "--out", tmp_path / "run" / "generated", "--num-samples", "3"),
        *("--condition", '{"label": "odd"}', "--num-inference-steps", "3"),
    )
    assert code == 0, error

    # 2. What it writes are folders of peft's
    pipe = PDiffPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    generated = tmp_path / "run" / "generated"
    vector = load_generated(generated, pipe.layout)[:][1]
    config = json.loads((generated / "00001" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, "someone/bert")
    wanted = probe(pipe.build_model(vector), "bert")
    pipe.save_adapter(vector, tmp_path / "saved")
    for place in (generated / "00001", tmp_path / "saved"):
        logits = logits_in(call("-c", PLAIN, base, place))
        assert (wanted - type(wanted)(logits)).abs().max() < 1e-5

    # 3. And on the Hub an adapter like any other
    call("-m", "pdiff_hf", "push", "generated", generated, "user/odd", "--index", 1)
    files = hub.files("user/odd")
    card = files["README.md"].decode()
    assert "library_name: peft" in card and "base_model: someone/bert" in card
    assert 'PeftModel.from_pretrained(base, "user/odd")' in card and "not by `hotswap_adapter`" in card
    assert {"adapter_config.json", "adapter_model.safetensors", "index.json"} <= files.keys()
    assert not any(name.startswith("base/") or name == "model.safetensors" for name in files)
    logits = logits_in(call("-c", PLAIN, base, "user/odd"))
    assert (wanted - type(wanted)(logits)).abs().max() < 1e-5
