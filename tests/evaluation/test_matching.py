import copy
import re
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from pdiff_hf.evaluation.matching import match, nearest_matched_distance
from pdiff_hf.evaluation.permutations import find_permutations, permutation_spec
from pdiff_hf.evaluation.similarity import nearest_distance
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import convnet3, mlp3


def convnet_with_columns():
    """Flattening keeps the 2 x 2 pixels, so every unit has four columns."""
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4))


def convnet_with_norms():
    layers = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 5, 1), nn.ReLU()]
    return nn.Sequential(nn.BatchNorm2d(3), *layers, nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 4))


MODELS = {
    "mlp": lambda: mlp3(48, (12, 9), 4),
    "convnet": lambda: convnet3(3, (8, 9, 7), 4),
    "columns": convnet_with_columns,
    "norms": convnet_with_norms,
}


def networks(name, n):
    """A model with its layout, and `n` independent networks, with random values in biases and norms too."""
    model = MODELS[name]().eval()
    layout = ParameterLayout.from_model(model, buffers=True)
    variances = torch.cat([torch.full((spec.numel,), spec.transform == "log") for spec in layout.tensors])
    vectors = torch.randn(n, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    return model, layout, torch.where(variances, vectors.exp(), vectors)


@torch.no_grad()
def logits(model, layout, vectors):
    model = copy.deepcopy(model).double()
    images = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    outputs = []
    for vector in vectors:
        model.load_state_dict(layout.unflatten(vector), strict=False)
        outputs.append(model(images))
    return torch.stack(outputs)


def hidden_layers(model):
    """Weighted layers but the last, and for each the tensors of its units by name: whether units are in columns."""
    modules = [(name, m) for name, m in model.named_modules() if list(m.children()) == [] and list(m.parameters())]
    weighted = [i for i, (_, m) in enumerate(modules) if isinstance(m, nn.Linear | nn.Conv2d)]
    for start, stop in pairwise(weighted):
        rows = [f"{name}.{key}" for name, m in modules[start:stop] for key in m.state_dict()]
        yield rows, f"{modules[stop][0]}.weight", len(modules[start][1].weight)


def units_of(model, layout):
    """Values that the hidden layers of a specification move, by the name of a tensor."""
    spec, names = find_permutations(model, layout), {s.offset: s.name for s in layout.tensors}
    return {names[t.offset]: (t.output, t.input) for t in spec.tensors}


def permuted_by(spec, vectors, seed):
    """Networks with the units of every hidden layer in a random order, by the specification itself."""
    generator, found = torch.Generator().manual_seed(seed), vectors.clone()
    for layer in range(spec.num_layers):
        units = next(tensor.shape[0] for tensor in spec.tensors if tensor.output == layer)
        order = torch.randperm(units, generator=generator)
        for tensor in spec.tensors:
            view = tensor.view(found)
            if tensor.output == layer:
                view.copy_(view[:, order].clone())
            if tensor.input == layer:
                view.copy_(view[:, :, order].clone())
    return found


def shuffled(model, layout, vectors, seed):
    """Every network with the units of every hidden layer in a random order, by a second way than the module's."""
    generator = torch.Generator().manual_seed(seed)
    results = []
    for vector in vectors:
        state = {name: tensor.clone() for name, tensor in layout.unflatten(vector).items()}
        for rows, columns, units in hidden_layers(model):
            order = torch.randperm(units, generator=generator)
            for name in (name for name in rows if name in state):
                state[name] = torch.cat([state[name].chunk(units)[unit] for unit in order])
            state[columns] = torch.cat([state[columns].chunk(units, 1)[unit] for unit in order], 1)
        results.append(layout.flatten(state))
    return torch.stack(results)


@pytest.mark.parametrize("name", MODELS)
def test_planted_permutations_are_undone(name):
    model, layout, vectors = networks(name, 6)
    spec = find_permutations(model, layout)
    planted = shuffled(model, layout, vectors, seed=1)
    torch.testing.assert_close(logits(model, layout, planted), logits(model, layout, vectors))
    assert nearest_distance(planted, vectors).min() > 3
    for vector, copy_of_it in zip(vectors, planted, strict=True):
        assert torch.equal(match(copy_of_it[None], vector, spec)[0], vector)
    assert (nearest_matched_distance(planted, vectors, spec) == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_matching_keeps_the_function_and_brings_networks_closer(name):
    model, layout, vectors = networks(name, 6)
    matched = match(vectors[1:], vectors[0], find_permutations(model, layout))
    torch.testing.assert_close(logits(model, layout, matched), logits(model, layout, vectors[1:]))
    before, after = ((rows - vectors[0]).norm(dim=1) for rows in (vectors[1:], matched))
    assert (after < before).all()
    assert torch.equal(matched.sort(1).values, vectors[1:].sort(1).values)


def test_single_hidden_layer_is_matched_optimally():
    model = mlp3(5, (4,), 3)
    layout = ParameterLayout.from_model(model)
    vectors = torch.randn(7, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    matched = match(vectors[1:], vectors[0], find_permutations(model, layout))
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    for vector, found in zip(vectors[1:], matched, strict=True):
        state, distances = layout.unflatten(vector), []
        for order in (order for order in orders if len(order.unique()) == 4):
            permuted = {"1.weight": state["1.weight"][order], "1.bias": state["1.bias"][order]}
            permuted |= {"3.weight": state["3.weight"][:, order], "3.bias": state["3.bias"]}
            distances.append((layout.flatten(permuted) - vectors[0]).norm().item())
        assert (found - vectors[0]).norm().item() == pytest.approx(min(distances), abs=1e-6)


def test_nearest_original_is_found_among_permuted_and_disturbed_ones():
    model, layout, originals = networks("convnet", 30)
    noise = 0.02 * torch.randn(originals.shape, generator=torch.Generator().manual_seed(2))
    distances = nearest_matched_distance(
        shuffled(model, layout, originals + noise, 1), originals, find_permutations(model, layout)
    )
    torch.testing.assert_close(distances, noise.norm(dim=1))


def test_matched_distance_is_never_above_the_distance():
    model, layout, vectors = networks("mlp", 40)
    spec = find_permutations(model, layout)
    a, b = vectors[:15], vectors[15:]
    assert (nearest_matched_distance(a, b, spec) < nearest_distance(a, b)).all()
    # Steps of a run are matched as they are.
    steps = vectors[0] + 0.01 * vectors[1:]
    matched = nearest_matched_distance(steps, steps, spec, exclude_self=True)
    torch.testing.assert_close(matched, nearest_distance(steps, steps, exclude_self=True))


def test_leave_one_out_ignores_the_row_itself_and_finds_its_permuted_twin():
    model, layout, vectors = networks("mlp", 5)
    spec = find_permutations(model, layout)
    assert (nearest_matched_distance(vectors, vectors, spec, exclude_self=True) > 1).all()
    twins = torch.cat([vectors, shuffled(model, layout, vectors[:1], 1)])
    distances = nearest_matched_distance(twins, twins, spec, exclude_self=True)
    assert (distances == 0).tolist() == [True, False, False, False, False, True]
    assert nearest_matched_distance(vectors[:1], vectors[:1], spec, exclude_self=True).isinf().all()


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    model, layout, vectors = networks("mlp", 12)
    spec = find_permutations(model, layout)
    whole = nearest_matched_distance(vectors[:5], vectors[5:], spec)
    monkeypatch.setattr("pdiff_hf.evaluation.matching.CHUNK_VALUES", 2 * layout.num_parameters)
    assert torch.equal(nearest_matched_distance(vectors[:5], vectors[5:], spec), whole)


def test_arguments_stay_as_they_are_in_float64_too():
    model, layout, vectors = networks("mlp", 6)
    vectors = vectors.double()
    kept = vectors.clone()
    nearest_matched_distance(vectors[:3], vectors[3:], find_permutations(model, layout))
    assert torch.equal(vectors, kept)


def test_networks_with_nan_stay_as_they_are():
    model, layout, vectors = networks("convnet", 6)
    spec = find_permutations(model, layout)
    vectors[0, 3] = float("nan")
    assert torch.equal(match(vectors[:2], vectors[5], spec)[0].nan_to_num(), vectors[0].nan_to_num())
    assert nearest_matched_distance(vectors[:2], vectors[2:], spec).isnan().tolist() == [True, False]


def test_other_lengths_are_named():
    model, layout, vectors = networks("mlp", 2)
    with pytest.raises(ValueError, match=rf"expected vectors \(A, {layout.num_parameters}\), found \(2, 5\)"):
        match(vectors[:, :5], vectors[0, :5], find_permutations(model, layout))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.layer(x)


def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[3].weight = model[1].weight
    return model


def repeated():
    layer = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(6, 2))


def flat(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 6), *layers, nn.Linear(6, 2))


class ActorCritic(nn.Module):
    """A trunk with two heads, beside a chain of its own; the spread of the actions is no layer's."""

    def __init__(self):
        super().__init__()
        self.act = nn.CELU()
        self.trunk = nn.Sequential(nn.Linear(48, 9), self.act)
        self.actor = nn.Sequential(nn.Linear(9, 8), nn.PReLU(8), nn.Linear(8, 4))
        self.critic = nn.Sequential(nn.Linear(9, 7), nn.GELU("tanh"), nn.Linear(7, 1))
        self.twin = nn.Sequential(nn.Linear(48, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.Linear(6, 4))
        self.log_std = nn.Parameter(torch.zeros(4))

    def forward(self, images):
        inputs = images.view(images.size(0), -1)
        hidden = self.trunk(self.act(inputs - inputs.mean()))
        mean = self.actor(hidden) * self.log_std.exp()
        return torch.cat([mean + self.critic(hidden), self.twin(inputs)], 1)


class Twins(nn.Module):
    """Two chains on two inputs, and a reshape by hand behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 6, 3), nn.Linear(24, 5)
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, images):
        hidden = F.celu(self.first(F.hardswish(self.conv(images)).reshape(images.shape[0], -1)))
        return torch.min(self.left(2 * hidden), self.right(hidden**2))


OTHER_MODELS = {
    "resnet": lambda: timm.create_model("resnet18", num_classes=10),
    "linear": lambda: nn.Linear(4, 2),
    "no hidden layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
    "residual": lambda: flat(Residual()),
    "layer norm": lambda: flat(nn.LayerNorm(6)),
    "softmax": lambda: flat(nn.Softmax(1)),
    "pooled units": lambda: flat(nn.MaxPool2d(3, 1, 1)),
    "groups": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)),
    "last axis": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Flatten(), nn.Linear(36, 2)),
    "reparametrised": lambda: flat(torch.nn.utils.spectral_norm(nn.Linear(6, 6)), nn.ReLU()),
    "tied": tied,
    "repeated": repeated,
}


@pytest.mark.parametrize(("make", "num_layers"), [(ActorCritic, 4), (Twins, 2)])
def test_chains_that_part_and_stand_side_by_side_are_matched(make, num_layers):
    torch.manual_seed(0)
    model = make().eval()
    layout = ParameterLayout.from_model(model, buffers=True)
    spec = find_permutations(model, layout)
    vectors = torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(0)).abs()
    planted = permuted_by(spec, vectors, seed=1)
    assert spec.num_layers == num_layers and (planted != vectors).float().mean() > 0.6
    torch.testing.assert_close(logits(model, layout, planted), logits(model, layout, vectors))
    for vector, copy_of_it in zip(vectors, planted, strict=True):
        assert torch.equal(match(copy_of_it[None], vector, spec)[0], vector)


def test_both_heads_of_a_trunk_take_its_units():
    model = ActorCritic()
    found = units_of(model, ParameterLayout.from_model(model, buffers=True))
    assert found["trunk.0.weight"] == (0, None) and found["trunk.0.bias"] == (0, None)
    assert (found["actor.0.weight"], found["critic.0.weight"]) == ((1, 0), (2, 0))
    assert (found["actor.1.weight"], found["twin.1.running_var"]) == ((1, None), (3, None))
    assert found["actor.2.weight"] == (None, 1) and "actor.2.bias" not in found and "twin.2.weight" not in found


ACTIVATIONS = [nn.ReLU(), nn.CELU(0.5), nn.PReLU(), nn.PReLU(7), nn.GELU("tanh"), nn.SELU(), nn.Mish(), nn.Softplus()]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_perceptrons_of_vectors_are_matched_with_any_elementwise_activation(act):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), act, nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    layout = ParameterLayout.from_model(model)
    vectors, inputs = torch.randn(3, layout.num_parameters), torch.randn(9, 5)
    spec = find_permutations(model, layout)
    planted = permuted_by(spec, vectors, seed=1)
    outputs = [torch.func.functional_call(model, layout.unflatten(of[0]), inputs) for of in (vectors, planted)]
    torch.testing.assert_close(*outputs)
    assert spec.num_layers == 2 and torch.equal(match(planted, vectors[1], spec)[1], vectors[1])


class Own(nn.Module):
    """A network of which a test gives the forward pass."""

    def __init__(self, forward):
        super().__init__()
        self.run, self.weight = forward, nn.Parameter(torch.ones(6, 6))
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda own, x: own.last(own.first(x) + own.second(x)), "branches that meet at 'add' in 'Own'"),
        (lambda own, x: own.last(own.first(x) * own.scale), "the tensor 'scale' is used outside of a layer, at 'mul'"),
        (lambda own, x: own.last(own.first(x @ own.weight)), "the parameter 'weight' is used outside of a layer"),
        (lambda own, x: own.last(own.first(x).softmax(1)), "found 'softmax' in 'Own'"),
        (lambda own, x: own.last(own.first(own.first(x))), "layer 'first' runs twice"),
        (lambda own, x: own.last(own.first(x) + torch.zeros_like(x)), "branches that meet at 'add'"),
        (lambda own, x: own.last(own.first(x).view(x.size(0), 3, 2).flatten(1)), "found 'view' in 'Own'"),
        (lambda own, x: own.last(x), "1 linear layers or convolutions, so no hidden units"),
        # Whoever takes the hidden units takes their order.
        (lambda own, x: (own.last(own.first(x)), own.first(x).relu()), "layer 'first' runs twice"),
    ],
)
def test_what_is_not_understood_is_named(forward, found):
    model = Own(forward)
    with pytest.raises(ValueError, match=re.escape(found)):
        permutation_spec(model, ParameterLayout.from_model(model))


def test_units_that_are_given_out_stay_where_they_are():
    def forward(own, x):
        hidden = own.first(x).relu()
        return own.last(own.second(hidden).tanh()), hidden

    model = Own(forward)
    found = units_of(model, ParameterLayout.from_model(model))
    assert found["first.weight"] == (None, None) and found["second.weight"] == (0, None)
    assert "first.bias" not in found and found["last.weight"] == (None, 0)


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_have_no_permutations(name):
    model = OTHER_MODELS[name]()
    assert find_permutations(model, ParameterLayout.from_model(model, buffers=True)) is None


def test_layouts_that_leave_tensors_out_have_no_permutations():
    model = mlp3()
    assert find_permutations(model, ParameterLayout.from_model(model)) is not None
    assert find_permutations(model, ParameterLayout.from_model(model, "head")) is None
    assert find_permutations(model, ParameterLayout.from_model(model, "*.weight")) is None
    model = convnet_with_norms()
    assert find_permutations(model, ParameterLayout.from_model(model, buffers=True)) is not None
    assert find_permutations(model, ParameterLayout.from_model(model)) is None
