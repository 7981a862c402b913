from collections import Counter

import pytest
import timm
import torch
from torch import nn

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.evaluation.tensor_kinds import KINDS, column_kinds, tensor_kinds


def kinds_of(model, base_model=None, **options):
    layout = ParameterLayout.from_model(model, **options)
    return dict(zip(layout.names, tensor_kinds(layout, base_model), strict=True))


@pytest.mark.parametrize("base_model", [None, BaseModel.timm("test_resnet", pretrained=True)])
def test_a_network_with_batch_norm_has_all_kinds_by_its_layers_and_by_its_names(base_model):
    found = kinds_of(timm.create_model("test_resnet"), base_model, buffers=True)
    assert Counter(found.values()) == {"weights": 16, "biases": 1, "norms": 30, "running statistics": 30}
    names = ("conv1.0.weight", "fc.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    assert [found[name] for name in names] == ["weights", "biases", "norms", "norms", *2 * ["running statistics"]]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_layers_and_names_say_the_same(name):
    model = timm.create_model(name)
    by_name, by_layer = kinds_of(model, buffers=True), kinds_of(model, BaseModel.timm(name), buffers=True)
    assert by_name == by_layer and {"weights", "biases", "norms"} <= set(by_name.values())


class Unusual(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln = nn.Linear(4, 4)
        self.first = nn.LayerNorm((2, 2))
        self.act = nn.PReLU(4)
        self.register_buffer("average", torch.zeros(3))


def make_unusual():
    return Unusual()


def test_layers_decide_where_names_and_shapes_mislead():
    base_model = BaseModel("import", f"{__name__}:make_unusual", trusted_imports=(__name__,))
    assert kinds_of(make_unusual(), base_model, buffers=True) == {
        "average": "running statistics",
        "ln.weight": "weights",
        "ln.bias": "biases",
        "first.weight": "norms",
        "first.bias": "norms",
        "act.weight": "weights",
    }
    # Code that is not trusted is not run: a matrix multiplies, a vector alone scales.
    untrusted = kinds_of(make_unusual(), BaseModel.imported(f"{__name__}:make_unusual"))
    assert untrusted == kinds_of(make_unusual())
    assert (untrusted["first.weight"], untrusted["act.weight"]) == ("weights", "norms")


@pytest.mark.parametrize("name", ["ln_f", "norm1", "LayerNorm", "bn"])
def test_a_bias_without_its_weight_is_known_by_the_name_of_its_layer(name):
    model = nn.ModuleDict({name: nn.LayerNorm(4), "normal": nn.Linear(4, 4)})
    found = kinds_of(model, select="*.bias")
    assert found == {f"{name}.bias": "norms", "normal.bias": "biases"}


def test_every_coordinate_has_the_kind_of_its_tensor():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    columns = column_kinds(ParameterLayout.from_model(model, buffers=True))
    assert [KINDS[index] for index in columns] == [
        *6 * ["weights"],
        *2 * ["biases"],
        *4 * ["norms"],
        *4 * ["running statistics"],
    ]


def make_at_random():
    return nn.Linear(2 + int(torch.randint(1, (1,), device="cpu")), 2)


def test_looking_at_the_layers_draws_no_random_numbers():
    layout = ParameterLayout.from_model(make_at_random())
    base_model = BaseModel("import", f"{__name__}:make_at_random", trusted_imports=(__name__,))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert tensor_kinds(layout, base_model) == ("weights", "biases")
    assert torch.equal(torch.rand(3), expected)
