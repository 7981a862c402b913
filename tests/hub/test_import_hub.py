import json

import pytest
import timm
import torch
from hub_client import ClientError
from safetensors.torch import save
from timm.models._hub import save_config_for_hf
from transformers import ViTConfig, ViTForImageClassification

from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.layout import ParameterLayout

CONFIG = ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=8,
    patch_size=4,
    num_channels=1,
    num_labels=3,
)
CARD = """---
model-index:
- name: net
  results:
  - task: {{type: image-classification}}
    dataset: {{type: digits, name: Digits, split: test}}
    metrics:
    - {{type: accuracy, value: {}}}
---
"""


def make_network(seed):
    torch.manual_seed(seed)
    return ViTForImageClassification(CONFIG)


def saved_files(folder, network):
    """What `save_pretrained` writes."""
    network.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_import(client, *sources, out, **options):
    code = """
from pdiff_hf.data.importing.importer import import_checkpoints
result = import_checkpoints(sources, out, progress=False, **options)
"""
    return client(code, sources=sources, out=out, options=options)


def check_rows(folder, seeds):
    dataset, layout = load_parameter_dataset(folder)
    expected = torch.stack([ParameterLayout.from_model(make_network(s)).flatten(make_network(s)) for s in seeds])
    assert torch.equal(dataset_vectors(dataset, layout), expected)
    return dataset, json.loads((folder / "stats.json").read_text())["metadata"]["import"]["rows"]


def test_fine_tunes_of_one_network_become_rows(hub, client, tmp_path):
    for seed in range(3):
        card = {"README.md": CARD.format(0.5 + seed / 10).encode()}
        hub.put(f"user/net-{seed}", saved_files(tmp_path / f"{seed}", make_network(seed)) | card)
    summary = run_import(client, *(f"hub:user/net-{seed}" for seed in range(3)), out=tmp_path / "ds")
    assert summary["runs"] == ["user/net-0", "user/net-1", "user/net-2"]
    dataset, rows = check_rows(tmp_path / "ds", range(3))
    assert dataset["test_accuracy"][:].tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert rows[1]["source"] == "user/net-1"
    assert rows[1]["revision"] == hub.repos["model", "user/net-1"].branches["main"]
    network, inputs = load_base_model(tmp_path / "ds").build(), torch.rand(2, 1, 8, 8)
    assert torch.equal(network(inputs).logits, make_network(0).eval()(inputs).logits)


def test_named_revisions_become_steps(hub, client, tmp_path):
    for seed, step in enumerate([1000, 2000]):
        hub.put("user/net", saved_files(tmp_path / f"{seed}", make_network(seed)), branch=f"step{step}")
    assert run_import(client, "hub:user/net@step1000,step2000", out=tmp_path / "ds")["runs"] == ["user/net"]
    dataset, _ = check_rows(tmp_path / "ds", range(2))
    assert dataset["step"][:].tolist() == [1000, 2000]


def test_all_revisions_are_the_commits_that_changed_weights(hub, client, tmp_path):
    files = [saved_files(tmp_path / f"{seed}", make_network(seed)) for seed in range(2)]
    hub.put("user/net", {"README.md": b"soon"})
    first = hub.put("user/net", files[0])
    hub.put("user/net", {"README.md": CARD.format(0.9).encode(), "optimizer.bin": b"1"})
    second = hub.put("user/net", files[1])
    run_import(client, "hub:user/net", out=tmp_path / "ds", all_revisions=True)
    dataset, rows = check_rows(tmp_path / "ds", range(2))
    assert [row["revision"] for row in rows] == [first, second]
    assert dataset.with_format(None)["test_accuracy"][:] == [None, pytest.approx(0.9)]


def test_weights_alone_are_imported_into_a_named_network(hub, client, tmp_path):
    for seed in range(2):
        weights = saved_files(tmp_path / f"{seed}", make_network(seed))["model.safetensors"]
        hub.put(f"user/net-{seed}", {"model.safetensors": weights})
    code = """
from transformers import ViTConfig
from pdiff_hf import BaseModel
from pdiff_hf.data.importing.importer import import_checkpoints
base = BaseModel.transformers(ViTConfig(**config), "ViTForImageClassification")
result = import_checkpoints(sources, out, base_model=base, progress=False)
"""
    sources = ["hub:user/net-0", "hub:user/net-1"]
    client(code, sources=sources, out=tmp_path / "ds", config=CONFIG.to_diff_dict())
    check_rows(tmp_path / "ds", range(2))


def test_timm_repositories_are_imported(hub, client, tmp_path):
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(timm.create_model("test_resnet", num_classes=3, in_chans=1))
        save_config_for_hf(networks[-1], tmp_path / "config.json")
        files = {"config.json": (tmp_path / "config.json").read_bytes()}
        hub.put(f"user/net-{seed}", files | {"model.safetensors": save(networks[-1].state_dict())})
    run_import(client, "hub:user/net-0", "hub:user/net-1", out=tmp_path / "ds", buffers=True)
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    network = load_base_model(tmp_path / "ds").build()
    layout.load_into(network, dataset[1]["parameters"])
    expected = networks[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


BROKEN = {
    "no such repository": (
        lambda hub, files: hub.repos.pop(("model", "user/b")),
        "user/b: the Hub shows no such repo",
    ),
    "no weights": (
        lambda hub, files: hub.repos.pop(("model", "user/b")) and hub.put("user/b", {"config.json": b"{}"}),
        "user/b: expected model.safetensors or pytorch_model.bin",
    ),
    "no config": (
        lambda hub, files: hub.repos.pop(("model", "user/a")) and hub.put("user/a", {"model.safetensors": b""}),
        "user/a: expected a config.json beside it, found none; name the base model",
    ),
    "other architecture": (
        lambda hub, files: hub.put("user/b", {"model.safetensors": save({"a": torch.ones(2)})}),
        "user/b: 0 of 40 tensors fit ViTForImageClassification: tensor 'a' is unexpected",
    ),
    "truncated": (
        lambda hub, files: hub.put("user/b", {"model.safetensors": files["model.safetensors"][:900]}),
        "user/b is no complete safetensors file",
    ),
    "came damaged": (
        lambda hub, files: hub.fault(
            "GET", "/user/b/resolve/.*safetensors", replace=b"x" * len(files["model.safetensors"])
        ),
        "user/b: model.safetensors came damaged|user/b: .*try again",
    ),
    "server fault": (lambda hub, files: hub.fault("GET", "/user/b/resolve/.*safetensors", status=500), "user/b: "),
    "code of its own": (
        lambda hub, files: hub.put("user/b", {"config.json": b'{"model_type": "x", "architectures": ["Y"]}'}),
        "user/b: config.json: transformers does not take this config",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unfriendly_repository_is_refused_in_one_line(hub, client, tmp_path, name):
    files = saved_files(tmp_path / "saved", make_network(0))
    for repo in ("user/a", "user/b"):
        hub.put(repo, files)
    damage, message = BROKEN[name]
    damage(hub, files)
    with pytest.raises(ClientError, match=message) as caught:
        run_import(client, "hub:user/a", "hub:user/b", out=tmp_path / "ds")
    assert caught.value.name == "ValueError" and len(caught.value.message.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_only_one_revision_with_weights_is_refused(hub, client, tmp_path):
    hub.put("user/net", saved_files(tmp_path / "saved", make_network(0)))
    with pytest.raises(ClientError, match="at least 2 checkpoints in hub:user/net, found 1"):
        run_import(client, "hub:user/net", out=tmp_path / "ds", all_revisions=True)
