from dataclasses import replace

import pytest
import timm
import torch
from hub_client import ClientError
from transformers import ViTConfig, ViTForImageClassification

from pdiff_hf import BaseModel, ParameterLayout, save_parameter_dataset
from pdiff_hf.identity import NetworkIdentity
from pdiff_hf.networks import mlp3
from pdiff_hf.pipelines.network_folder import write_networks

REPO = "user/network"
NETWORK = {"in_features": 4, "hidden": (4, 4), "num_classes": 3}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 8}


def make(library):
    torch.manual_seed(0)
    if library == "timm":
        options = {"num_classes": 3, "pretrained": False}
        return BaseModel.timm("test_resnet", **options), timm.create_model("test_resnet", **options), (1, 3, 32, 32)
    if library == "transformers":
        config = ViTConfig(**VIT, patch_size=4, num_labels=3)
        model = ViTForImageClassification(config)
        return BaseModel.transformers(config, "ViTForImageClassification"), model, (1, 3, 8, 8)
    return BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK), mlp3(**NETWORK), (1, 1, 2, 2)


TASK = {
    "kind": "image_classification",
    "image_size": 8,
    "in_chans": 3,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.1, 0.2, 0.3],
    "interpolation": "bilinear",
    "crop_pct": 0.8,
    "class_names": ["cat", "dog", "ship"],
}


def write(tmp_path, library, selection=True):
    """A dataset as the source, three generated heads, and the logits of the network with each."""
    base, model, shape = make(library)
    base, layout = base.save_weights(model.eval(), tmp_path / "source"), ParameterLayout.from_model(model, "head")
    vectors = torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(1))
    save_parameter_dataset(vectors, layout, tmp_path / "dataset", base, metadata={"task": TASK})
    index = {"seed": 0}
    if selection:
        index["choice"] = {"num_drawn": 9, "num_val": 50, "val_accuracy": [0.9, 0.8, 0.7]}
    write_networks(tmp_path / "generated", layout, map(layout.unflatten, vectors), index)
    logits = []
    for vector in vectors:
        layout.load_into(model, vector)
        with torch.no_grad():
            output = model(torch.ones(shape))
        logits.append(output if isinstance(output, torch.Tensor) else output.logits)
    return shape, logits


def push(client, tmp_path, repo=REPO, **options):
    code = "from pdiff_hf.pipelines.push_generated import push_generated\n"
    code += "result = push_generated(folder, repo, source, **options)"
    return client(code, folder=tmp_path / "generated", repo=repo, source=tmp_path / "dataset", options=options)


LOADERS = {
    "timm": 'import timm; model = timm.create_model(f"hf_hub:{repo}", pretrained=True)',
    "transformers": "from transformers import AutoModelForImageClassification as A; model = A.from_pretrained(repo)",
    "import": (
        "from huggingface_hub import snapshot_download; from pdiff_hf import load_base_model\n"
        "model = load_base_model(snapshot_download(repo)).build()"
    ),
}


def logits(client, library, shape, repo=REPO):
    code = """
import torch
output = model.eval()(torch.ones(shape))
result = (output if isinstance(output, torch.Tensor) else output.logits).tolist()
"""
    return torch.tensor(client(LOADERS[library] + code, repo=repo, shape=shape))


def test_pushed_network_prepares_images_as_its_task_did(hub, client, tmp_path):
    """Not as the architecture's pretrained weights want them."""
    pixels = torch.randint(0, 256, (12, 10, 3), generator=torch.Generator().manual_seed(0)).tolist()
    code = """
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
image = Image.fromarray(np.array(pixels, dtype=np.uint8))
model = timm.create_model("hf_hub:user/timm", pretrained=True)
data = timm.data.resolve_model_data_config(model)
first = timm.data.create_transform(**data)(image)
second = AutoImageProcessor.from_pretrained("user/transformers")(image, return_tensors="pt")["pixel_values"][0]
result = {"data": data, "difference": (first - second).abs().max().item(), "shape": list(first.shape),
          "timm": model.pretrained_cfg["label_names"],
          "transformers": list(AutoConfig.from_pretrained("user/transformers").id2label.values())}
"""
    for library in ("timm", "transformers"):
        write(tmp_path / library, library)
        push(client, tmp_path / library, f"user/{library}")
    found = client(code, pixels=pixels)
    assert found["data"]["input_size"] == [3, 8, 8] and found["shape"] == [3, 8, 8]
    assert {key: found["data"][key] for key in ("mean", "std", "interpolation", "crop_pct")} == {
        key: TASK[key] for key in ("mean", "std", "interpolation", "crop_pct")
    }
    # Both resize by PIL or torchvision, which round differently by a grey level of 255.
    assert found["difference"] < 2 / 255 / min(TASK["std"])
    assert found["timm"] == found["transformers"] == TASK["class_names"]


@pytest.mark.parametrize("library", ["timm", "transformers", "import"])
def test_best_network_loads_the_way_of_its_library(hub, client, tmp_path, library):
    shape, expected = write(tmp_path, library)
    push(client, tmp_path)
    assert torch.equal(logits(client, library, shape), expected[0])
    card = hub.files(REPO)["README.md"].decode()
    assert ("90.00%" in card and LOADERS["timm"].partition("hf_hub")[0][:10] in card) or library != "timm"
    assert not any(name.endswith((".bin", ".pt")) for name in hub.files(REPO))


def test_snippet_of_the_card_runs(hub, client, tmp_path):
    for library in LOADERS:
        shape, expected = write(tmp_path / library, library)
        push(client, tmp_path / library, f"user/{library}")
        snippet = hub.files(f"user/{library}")["README.md"].decode().partition("```python\n")[2].partition("```")[0]
        found = client(snippet + "\nimport torch\noutput = model.eval()(torch.ones(shape))\n"
            "result = getattr(output, 'logits', output).tolist()", shape=shape)  # fmt: skip
        assert torch.equal(torch.tensor(found), expected[0])


def test_named_network_is_pushed_without_a_selection(hub, client, tmp_path):
    shape, expected = write(tmp_path, "import", selection=False)
    with pytest.raises(ClientError, match="expected the index of a network, or a choice"):
        push(client, tmp_path)
    with pytest.raises(ClientError, match="expected an index from 0 to 2, found 3"):
        push(client, tmp_path, index=3)
    assert not hub.repos
    push(client, tmp_path, index=2)
    assert torch.equal(logits(client, "import", shape), expected[2])
    assert "was not chosen by its accuracy" in hub.files(REPO)["README.md"].decode()


def test_zoo_has_all_networks_and_its_snippet_runs(hub, client, tmp_path):
    shape, expected = write(tmp_path, "import")
    push(client, tmp_path, zoo=True)
    networks = {f"0000{row}.safetensors" for row in range(3)}
    assert set(hub.files(REPO)) == networks | {"index.json", "layout.json", "base/model.safetensors", "README.md"}
    snippet = hub.files(REPO)["README.md"].decode().partition("```python\n")[2].partition("```")[0]
    found = client(snippet + "\nimport torch\nresult = model(torch.ones(shape)).tolist()", shape=shape)
    assert torch.equal(torch.tensor(found), expected[0])


def test_networks_of_another_layout_are_not_pushed(hub, client, tmp_path):
    write(tmp_path, "import")
    other = ParameterLayout.from_model(torch.nn.Linear(2, 2))
    save_parameter_dataset(torch.zeros(2, 6), other, tmp_path / "other", make("import")[0])
    (tmp_path / "dataset").rename(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "dataset")
    with pytest.raises(ClientError, match="belong to different networks: tensor"):
        push(client, tmp_path)
    assert not hub.repos


def test_an_adapter_is_pushed_as_peft_has_it(hub, client, tmp_path):
    pytest.importorskip("peft")
    config = ViTConfig(**VIT, patch_size=4, num_labels=3)
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    adapter |= {"modules_to_save": ["classifier"], "base_model_name_or_path": "someone/vit"}
    base = replace(BaseModel.transformers(config, "ViTForImageClassification"), adapter=adapter)
    model = base.build()
    base, layout = base.save_weights(model, tmp_path / "source"), ParameterLayout.from_model(model, "adapter")
    vectors = torch.randn(2, layout.num_parameters, generator=torch.Generator().manual_seed(1))
    save_parameter_dataset(vectors, layout, tmp_path / "dataset", base, metadata={"task": TASK})
    index = NetworkIdentity.of("", layout, base).to_dict()
    write_networks(tmp_path / "generated", layout, map(layout.unflatten, vectors), index, base_model=base)
    push(client, tmp_path, index=1)
    files = hub.files(REPO)
    written = (tmp_path / "generated" / "00001" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == written and "model.safetensors" not in files
    card = files["README.md"].decode()
    assert "library_name: peft" in card and "base_model: someone/vit" in card
    assert 'base = ViTForImageClassification.from_pretrained("someone/vit", num_labels=3)' in card
    assert "It has a head of its own" in card
    push(client, tmp_path, "user/zoo", zoo=True)
    names = hub.files("user/zoo").keys()
    assert {"00000/adapter_config.json", "00001/adapter_model.safetensors", "base/model.safetensors"} <= names
