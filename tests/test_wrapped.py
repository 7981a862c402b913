"""Networks are known by their own names, whatever wraps them or parts of them."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.wrapped import copy_network, fit_names, own_modules, own_state, plain_name, unwrap


def make_net():
    """A factory: layers with a child that has the name which `DataParallel` gives to a network."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    return nn.Sequential(nn.Flatten(), nn.ModuleDict({"module": module})["module"], nn.ReLU(), nn.Linear(6, 3))


class Named(nn.Module):
    """A network whose only child is called as `DataParallel` calls the network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.module = make_net()

    def forward(self, images):
        return self.module(images)


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_part(model):
    network = unwrap(model).module
    network[1] = compiled(network[1])
    return model


def checkpointed_part(model):
    network = unwrap(model).module
    network[1] = checkpoint_wrapper(network[1])
    return model


# From the inside to the outside.
WRAPPINGS = {
    "plain": (),
    "compiled": (compiled,),
    "parallel": (nn.DataParallel,),
    "averaged": (AveragedModel,),
    "checkpointed": (checkpoint_wrapper,),
    "parts": (compiled_part, checkpointed_part),
    "nested": (checkpointed_part, compiled_part, compiled, nn.DataParallel, AveragedModel),
}


@pytest.fixture(params=WRAPPINGS)
def wrapped(request):
    model = Named()
    for wrap in WRAPPINGS[request.param]:
        model = wrap(model)
    return model


def test_layout_and_state_have_the_names_of_the_network(wrapped):
    plain = Named()
    assert ParameterLayout.from_model(wrapped, "all", True) == ParameterLayout.from_model(plain, "all", True)
    assert ParameterLayout.from_model(wrapped, "last_norms:1") == ParameterLayout.from_model(plain, "last_norms:1")
    assert ParameterLayout.from_model(wrapped, "*.3.*") == ParameterLayout.from_model(plain, "head")
    state = own_state(wrapped)
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    assert [name for name, _ in own_modules(wrapped)] == [name for name, _ in plain.named_modules()]


def test_recorded_networks_are_rebuilt_whatever_wraps_them(wrapped, tmp_path):
    base = BaseModel.imported(f"{__name__}:Named").save_weights(wrapped, tmp_path)
    assert base.state_dict().keys() == Named().state_dict().keys()
    layout = ParameterLayout.from_model(wrapped, "head")
    layout.freeze_rest(wrapped)
    assert sum(parameter.requires_grad for parameter in wrapped.parameters()) == 2
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        layout.load_into(wrapped, torch.arange(21.0))
        recorder.record(wrapped, step=0)
        recorder.record(wrapped.state_dict(), step=1)
    dataset = ParameterDataset(tmp_path / "ds", trusted_imports=[__name__])
    assert torch.equal(dataset.vectors(), torch.arange(21.0).expand(2, 21))
    network = dataset.base_model.build()
    dataset.layout.load_into(network, dataset.vectors()[0])
    images = torch.randn(5, 1, 2, 2)
    with torch.no_grad():
        assert torch.equal(network(images), wrapped.eval()(images))


def test_wrapped_networks_are_evaluated():
    model = Named()
    for wrap in WRAPPINGS["nested"]:
        model = wrap(model)
    layout, images = ParameterLayout.from_model(model, "head"), torch.randn(5, 1, 2, 2)
    evaluator = ParameterEvaluator(model, layout, images, torch.zeros(5, dtype=torch.long))
    logits = next(evaluator.logits(layout.flatten(model)[None]))[1][0]
    with torch.no_grad():
        assert torch.equal(logits, model.eval()(images))
    assert evaluator.is_partial


def test_rest_that_a_wrapped_network_changes_is_refused(wrapped, tmp_path):
    base = BaseModel.imported(f"{__name__}:Named").save_weights(wrapped, tmp_path)
    layout = ParameterLayout.from_model(wrapped, "head")
    recorder = ParameterRecorder(layout, tmp_path / "ds", base)
    with torch.no_grad():
        next(wrapped.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"step 0: tensor 'module\.1\.0\.weight' is not in the layout, but differs"):
        recorder.record(wrapped, step=0)


def test_copy_of_a_network_has_neither_wrappers_nor_its_memory(wrapped):
    network = copy_network(wrapped)
    assert list(network.state_dict()) == list(Named().state_dict())
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert torch.equal(own_state(wrapped)["module.1.0.weight"], Named().state_dict()["module.1.0.weight"])


@pytest.mark.parametrize("kind", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_weights_that_hooks_compute_are_evaluated(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), kind(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))
    images = torch.randn(5, 1, 2, 2)
    model(images)
    layout = ParameterLayout.from_model(model, buffers=True)
    vectors = torch.stack([layout.flatten(model), 1.5 * layout.flatten(model)])
    evaluator = ParameterEvaluator(model, layout, images, torch.zeros(5, dtype=torch.long))
    found = next(evaluator.logits(vectors))[1]
    for vector, logits in zip(vectors, found, strict=True):
        layout.load_into(model, vector)
        with torch.no_grad():
            # Rounding of another order of operations.
            torch.testing.assert_close(logits, model.eval()(images), rtol=0, atol=1e-6)


def test_mixed_precision_of_accelerate_stays_with_the_wrapped_network():
    model = make_net().eval()
    # As `Accelerator.prepare` does it.
    model._original_forward = model.forward
    model.forward = lambda images: torch.full((len(images), 3), 7.0)
    network = copy_network(model)
    assert torch.equal(network(torch.ones(2, 4)), make_net().eval()(torch.ones(2, 4)))
    assert model(torch.ones(2, 4)).unique().item() == 7


OWN = {"module.a", "module.b"}
PLAIN = {"a", "b"}


@pytest.mark.parametrize(
    "names, expected, found",
    [
        (["module.a", "module.b"], PLAIN, ["a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], PLAIN, ["a", "b"]),
        (["n_averaged", "module.module._orig_mod.a", "module.module.b"], PLAIN, ["a", "b"]),
        (["module.a", "module.b"], OWN, ["module.a", "module.b"]),
        (["module.module.a", "module.module.b"], OWN, ["module.a", "module.b"]),
        (["n_averaged", "module.module.a", "module.module.b"], OWN, ["module.a", "module.b"]),
        (["model.net.a", "model.net.b"], PLAIN, ["a", "b"]),
        (["n_averaged", "a", "b"], {"n_averaged", "a", "b"}, ["n_averaged", "a", "b"]),
        # Nothing fits: what wraps is removed, so that the message names what is in it.
        (["module.c", "module.d"], PLAIN, ["c", "d"]),
        (["net.c", "net.d"], PLAIN, ["net.c", "net.d"]),
        (["n_averaged"], PLAIN, ["n_averaged"]),
        ([], PLAIN, []),
    ],
)
def test_state_dicts_are_fitted_to_the_names_of_a_network(names, expected, found):
    state = {name: torch.tensor(index) for index, name in enumerate(names)}
    fitted = fit_names(state, expected)
    assert list(fitted) == found
    assert [value.item() for value in fitted.values()] == list(range(len(names)))[len(names) - len(found) :]


def test_plain_names_lose_only_what_wrappers_give():
    assert plain_name("module._orig_mod.0._checkpoint_wrapped_module.weight") == "module.0.weight"


def test_layout_with_the_names_of_a_wrapper_says_what_to_do():
    with pytest.raises(ValueError, match=r"'_orig_mod\.1\.weight' has the name .* gives to '1\.weight'; record or"):
        ParameterLayout((TensorSpec("_orig_mod.1.weight", (2,), 0),))


def test_weights_that_data_parallel_named_are_refused_by_what_was_found(tmp_path):
    state = nn.DataParallel(make_net()).state_dict()
    base = BaseModel.imported(f"{__name__}:make_net").save_weights(state, tmp_path)
    with pytest.raises(ValueError, match=r"'module\.1\.0\.bias' is none of .*'1\.0\.weight' and so on: a wrapper"):
        base.build([__name__])


def test_factory_may_return_a_wrapped_network(tmp_path):
    def check(build):
        assert list(build().state_dict()) == list(make_net().state_dict())

    base = BaseModel.imported(f"{__name__}:compiled_factory")
    check(lambda: base.build([__name__]))
    check(lambda: base.save_weights(make_net(), tmp_path).build([__name__]))


def compiled_factory():
    return compiled(make_net())


def test_wrapped_parts_that_are_shared_stay_shared():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(compiled(layer), layer)
    assert ParameterLayout.from_model(model).names == ("0.weight", "0.bias")
    network = copy_network(model)
    assert network[0] is network[1]
    assert list(own_state(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_parts_that_data_parallel_has_named_are_fitted():
    network = make_net()
    network[1][0] = nn.DataParallel(network[1][0])
    layout = ParameterLayout.from_model(network)
    assert "1.0.module.weight" in network.state_dict() and "1.0.weight" in layout.names
    assert torch.equal(layout.flatten(network.state_dict()), layout.flatten(network))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda network: torch.jit.trace(network, torch.zeros(2, 4))])
def test_torchscript_is_refused_where_layouts_networks_and_weights_are_made(make, tmp_path):
    network, layout = make_net().eval(), ParameterLayout.from_model(make_net())
    base = BaseModel.imported("test_wrapped:make_net")
    for use in (
        ParameterLayout.from_model,
        layout.flatten,
        copy_network,
        lambda scripted: base.save_weights(scripted, tmp_path),
    ):
        with pytest.raises(ValueError, match="found one of TorchScript; take the network that it was made from"):
            use(make(network))


@pytest.mark.parametrize("state", [None, [1], "x", {0: torch.zeros(1)}, {"1.0.weight": 1.0}])
def test_what_is_no_network_is_named(state, tmp_path):
    layout, base = ParameterLayout.from_model(make_net()), BaseModel.imported("test_wrapped:make_net")
    for use in (layout.flatten, layout.check, lambda state: base.save_weights(state, tmp_path)):
        with pytest.raises(ValueError, match=r"found a (NoneType|list|str|dict|float)\."):
            use(state)
    with pytest.raises(ValueError, match=r"found a "):
        ParameterRecorder(layout, tmp_path / "dataset").record(state, step=0)
    assert not (tmp_path / "dataset").exists()


def test_network_of_buffers_alone_is_refused():
    network = nn.Module()
    network.register_buffer("table", torch.zeros(3))
    with pytest.raises(ValueError, match="floating-point parameters, found none"):
        ParameterLayout.from_model(network, "all", buffers=True)
