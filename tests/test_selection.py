"""What a layout cannot serve is refused where it is made, by name and with what to do."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pdiff_hf.base_model import BaseModel
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3


def with_weight(tensor, **options):
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight = nn.Parameter(tensor, **options)
    return model


def view_of_another():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = nn.Parameter(model[0].weight.data[1])
    return model


def tied_by_memory():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    return model


class OwnState(nn.Linear):
    def get_extra_state(self):
        return {"scale": 1}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Linear(2, 2, dtype=torch.float64), r"'weight' has dtype float64.*model\.float\(\)"),
        (
            lambda: with_weight(torch.zeros(3, 4).to(torch.float8_e4m3fn), requires_grad=False),
            r"'0\.weight' has dtype float8_e4m3fn.*model\.float\(\)",
        ),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), r"'weight' is complex \(torch\.complex64\).*view_as_complex"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), r"'1\.weight' has no shape yet.*run one batch"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d()), r"'1\.weight' has no shape yet"),
        (lambda: with_weight(torch.ones(3, 4).to_sparse()), r"'0\.weight': .*found the layout sparse_coo"),
        (
            lambda: with_weight(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
            r"'0\.weight': .*found nested tensors",
        ),
        (lambda: with_weight(torch.ones(1, 4).expand(3, 4)), r"'0\.weight' is expanded.*clone"),
        (view_of_another, r"'1\.bias' share memory without being one parameter|'0\.weight' and '1\.bias' share"),
        (tied_by_memory, r"'[01]\.weight' and '[01]\.weight' share memory"),
        (lambda: nn.Sequential(OwnState(2, 2)), r"layer '0' \(OwnState\): .*saves its state in a way of its own"),
    ],
)
def test_tensors_that_cannot_be_served_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        ParameterLayout.from_model(make())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantized_networks_are_refused(tmp_path):
    model = torch.ao.quantization.quantize_dynamic(mlp3(4, [4], 3), {nn.Linear}, torch.qint8)
    with pytest.raises(ValueError, match=r"layer '1' \(Linear\): .*before it was converted"):
        ParameterLayout.from_model(model)
    with pytest.raises(ValueError, match=r"layer '1' \(Linear\): .*before it was converted"):
        BaseModel.imported("pdiff_hf.tasks.networks:mlp3").save_weights(model, tmp_path)


def test_layout_of_a_network_without_memory_is_made_and_its_values_are_refused(tmp_path):
    model = mlp3(4, [4], 3)
    layout, empty = ParameterLayout.from_model(model), mlp3(4, [4], 3).to("meta")
    assert ParameterLayout.from_model(empty) == layout
    for use in (
        lambda: layout.flatten(empty),
        lambda: layout.load_into(empty, layout.flatten(model)),
        lambda: BaseModel.imported("pdiff_hf.tasks.networks:mlp3").save_weights(empty, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"'1\.weight': .*found that it is on the meta device"):
            use()


def test_other_tensors_of_a_network_with_complex_ones_are_served(tmp_path):
    model = nn.ModuleDict({"wave": nn.Linear(2, 2, dtype=torch.complex64), "head": nn.Linear(2, 2)})
    assert ParameterLayout.from_model(model, "head.*").names == ("head.weight", "head.bias")
    state = BaseModel.imported("a:b").save_weights(model, tmp_path).state_dict()
    assert torch.equal(state["wave.weight"], model["wave"].weight)


def test_parts_of_one_memory_that_do_not_meet_are_served():
    flat, pairs = torch.randn(8), torch.randn(4, 2)
    model = nn.ParameterDict({"a": flat[:4], "b": flat[4:], "c": pairs[:, 0], "d": pairs[:, 1]})
    assert ParameterLayout.from_model(model).names == ("a", "b", "c", "d")


def test_view_of_a_tensor_that_is_not_selected_is_refused_only_where_it_is_generated():
    model = view_of_another()
    assert ParameterLayout.from_model(model, "1.weight").names == ("1.weight",)
    with pytest.raises(ValueError, match="share memory"):
        ParameterLayout.from_model(model, "1.bias")


def test_layers_that_ran_once_are_no_longer_lazy():
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.ones(1, 2))
    assert ParameterLayout.from_model(model).num_parameters == 9


@pytest.mark.parametrize("kind", [weight_norm, spectral_norm])
def test_parametrized_layers_are_served(kind):
    layout = ParameterLayout.from_model(kind(nn.Linear(3, 2)))
    assert all("parametrizations" in name for name in layout.names if name != "bias")


def test_layout_without_any_value_is_refused():
    with pytest.raises(ValueError, match="at least one value, found none in weight"):
        ParameterLayout.from_model(nn.ParameterDict({"weight": torch.zeros(0, 4)}))


def test_factory_of_a_lazy_network_is_refused():
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet"):
        BaseModel.imported(f"{__name__}:make_lazy").build([__name__])


def make_lazy():
    return nn.Sequential(nn.LazyLinear(3))
