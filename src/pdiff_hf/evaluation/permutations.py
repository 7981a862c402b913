"""Permutations of hidden units that leave a network's function as it is, read off its graph."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..layout import ParameterLayout, TensorSpec
from ..wrapped import unwrap

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Without parameters, and alike for every value.
ELEMENTWISE = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh}
ELEMENTWISE |= {nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid}
ELEMENTWISE |= {nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.AlphaDropout}
ELEMENTWISE |= {F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.tanh}
ELEMENTWISE |= {F.sigmoid, F.logsigmoid, F.softplus, F.softsign, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout}
ELEMENTWISE |= {torch.relu, torch.relu_, torch.celu, torch.selu, torch.tanh, torch.sigmoid, torch.sin, torch.cos}
ELEMENTWISE |= {torch.exp, torch.abs, torch.square, torch.clamp, torch.mul, torch.add, torch.sub, torch.div, torch.pow}
ELEMENTWISE |= {operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg}
ELEMENTWISE |= {
    "relu",
    "relu_",
    "tanh",
    "sigmoid",
    "sin",
    "cos",
    "exp",
    "abs",
    "square",
    "clamp",
    "float",
    "contiguous",
}
# Of feature maps (B, C, H, W) without parameters, and alike for every channel.
POOLING = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d}
POOLING |= {F.max_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.dropout2d}
SIZE_OPERATORS = {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv}
UNDERSTOOD = (
    "expected convolutions without groups, flattening and linear layers in chains, also several that part or stand "
    "side by side, with element-wise activations, pooling, dropout and BatchNorm between them, every tensor selected "
    "once"
)


@dataclass(frozen=True)
class PermutedTensor:
    """A tensor that is permuted with hidden units, from the position `offset` in the vector on.

    Its `shape` is outputs, inputs, and the values that stay together; `output` and `input` are the hidden layers whose
    units are its outputs and inputs.
    """

    offset: int
    shape: tuple[int, int, int]
    output: int | None
    input: int | None = None

    def view(self, vectors: torch.Tensor) -> torch.Tensor:
        """Its values in vectors `(n, D)`, as a view `(n, outputs, inputs, values)`."""
        return vectors[:, self.offset :][:, : math.prod(self.shape)].view(-1, *self.shape)


@dataclass(frozen=True)
class PermutationSpec:
    """How the units of a network's `num_layers` hidden layers, and `tensors` with them, may be permuted."""

    num_parameters: int
    num_layers: int
    tensors: tuple[PermutedTensor, ...]


def find_permutations(model: nn.Module, layout: ParameterLayout) -> PermutationSpec | None:
    """As [`permutation_spec`], and `None` for a network that it does not understand."""
    try:
        return permutation_spec(model, layout)
    except ValueError:
        return None


def permutation_spec(model: nn.Module, layout: ParameterLayout) -> PermutationSpec:
    """Find the hidden layers of a network whose units may be permuted.

    The graph is traced by `torch.fx`. Known are chains, written as `nn.Sequential` or in a `forward` of one's own, of
    convolutions without groups, flattening and linear layers, with element-wise activations, pooling, dropout and
    BatchNorm between them, on images `(B, C, H, W)` or vectors `(B, F)`. Chains may part, as a trunk with several
    heads, and several may stand side by side, as an actor and a critic. Units that the network gives out stay where
    they are, and so may anything be done with them.

    Raises:
        ValueError: the network is another one, has no hidden layer, or a tensor of its layers is not in the layout, so
            that it cannot be permuted; the layer is named.
    """
    return _Walk(unwrap(model), layout).spec()


@dataclass(frozen=True)
class _Values:
    """What flows along an edge: the hidden layer whose `units` it is made of, none for values that are not permuted.

    A unit is one value of vectors, one feature map, or after flattening the values of one (`is_exact` is false).
    """

    hidden: int | None = None
    units: int = 1
    are_maps: bool | None = None
    is_exact: bool = True


class _Walk:
    """From the inputs of a network to its outputs, a node of its graph at a time."""

    def __init__(self, model: nn.Module, layout: ParameterLayout):
        if fx.Tracer().is_leaf_module(model, ""):
            raise _error(f"a single layer ({type(model).__name__}), so no hidden units")
        # Tracing gives constants of the forward pass to the network as attributes.
        self.model, self.modules = copy.copy(model), dict(model.named_modules())
        self.specs, self.num_parameters = {spec.name: spec for spec in layout.tensors}, layout.num_parameters
        try:
            self.nodes = list(fx.Tracer().trace(self.model).nodes)
        except Exception as error:  # tracing passes on whatever the model's own code raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _error(f"that {type(model).__name__} cannot be traced ({reason})") from error
        self.tensors: list[PermutedTensor] = []
        self.num_layers, self.seen = 0, set()

    def spec(self) -> PermutationSpec:
        weighted = [node for node in self.nodes if self._is_weighted(node)]
        sizes, given_out = _sizes(self.nodes), set()
        for node in reversed(self.nodes):
            users = [user for user in node.users if user not in sizes]
            if any(user.op == "output" or (user in given_out and user not in weighted) for user in users):
                given_out.add(node)
        values: dict[fx.Node, _Values] = {}
        for node in self.nodes:
            if node.op == "output":
                continue
            if node.op == "get_attr":
                self._check_attribute(str(node.target))
            inputs = [other for other in node.all_input_nodes if other not in sizes]
            if node.op in ("placeholder", "get_attr") or node in sizes or not inputs:
                values[node] = _Values()
            elif node.op == "call_module":
                values[node] = self._module(node, [values[other] for other in inputs], node not in given_out)
            else:
                values[node] = self._function(node, inputs, [values[other] for other in inputs])
        if not self.num_layers:
            raise _error(f"{len(weighted)} linear layers or convolutions, so no hidden units")
        return PermutationSpec(self.num_parameters, self.num_layers, tuple(self.tensors))

    def _is_weighted(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.modules[str(node.target)]) in WEIGHTED

    def _check_attribute(self, name: str) -> None:
        owner, _, key = name.rpartition(".")
        tensor = getattr(self.model.get_submodule(owner), key)
        # Such as the spread of an actor's actions, or the mean of observations.
        if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
            raise _error(f"that the parameter {name!r} is used outside of a layer")

    def _function(self, node: fx.Node, inputs: list[fx.Node], values: list[_Values]) -> _Values:
        """What a function or method makes of values."""
        if all(value.hidden is None for value in values):
            return _Values()
        label = f"{node.name!r} in {_owner(node) or type(self.model).__name__!r}"
        if attributes := [str(other.target) for other in inputs if other.op == "get_attr"]:
            raise _error(f"that the tensor {attributes[0]!r} is used outside of a layer, at {label}")
        if len(inputs) > 1:
            raise _error(f"branches that meet at {label}")
        [value] = values
        if node.target in ELEMENTWISE or (node.target in POOLING and value.are_maps):
            return value
        if _flattens(node):
            return _flat(value)
        raise _error(label)

    def _module(self, node: fx.Node, values: list[_Values], is_hidden: bool) -> _Values:
        """What a layer makes of values; its tensors are kept where they are permuted."""
        name = str(node.target)
        operation = self.modules[name]
        kind, label = type(operation), f"layer {name!r} ({type(operation).__name__})"
        own = dict(operation.named_parameters())
        own |= {key: buffer for key, buffer in operation.named_buffers() if buffer.is_floating_point()}
        is_free = all(value.hidden is None for value in values)
        if not own and is_free:
            return _Values()
        if len(values) > 1:
            raise _error(f"branches that meet at {label}")
        [value] = values
        if kind in ELEMENTWISE or (kind in POOLING and value.are_maps):
            return value
        if kind is nn.Flatten and (operation.start_dim, operation.end_dim) == (1, -1):
            return _flat(value)
        if kind is nn.PReLU and operation.num_parameters == 1:
            return value
        takes_maps = kind in (nn.Conv2d, nn.BatchNorm2d)
        is_known = kind in (*WEIGHTED, *NORMS, nn.PReLU)
        if not is_known or (kind is not nn.PReLU and value.are_maps not in (None, takes_maps)):
            raise _error(label if is_known or kind is not nn.Flatten else f"layer {name!r} ({operation})")
        if name in self.seen:
            raise _error(f"that layer {name!r} runs twice")
        self.seen.add(name)
        # Reparametrised layers, as with weight_norm, have other tensors.
        if kind in WEIGHTED and not {"weight"} <= set(own) <= {"weight", "bias"}:
            raise _error(f"{label} with the tensors {', '.join(own)}")
        for key in own:
            if f"{name}.{key}" not in self.specs:
                raise _error(f"that tensor '{name}.{key}' is tied or not selected")
        specs = {key: self.specs[f"{name}.{key}"] for key in own}
        if kind not in WEIGHTED:
            features = operation.num_parameters if kind is nn.PReLU else operation.num_features
            self._check_units(label, features, value, "features")
            self._keep_units(specs, value)
            return value if kind is nn.PReLU else replace(value, are_maps=takes_maps)
        columns, outputs = operation.weight.shape[1], len(operation.weight)
        groups = operation.groups if takes_maps else 1
        if groups > 1:
            raise _error(f"{label} of {columns} inputs in {groups} groups for {value.units} units")
        self._check_units(label, columns, value, "inputs")
        after = _Values(self.num_layers, outputs, takes_maps) if is_hidden else _Values(are_maps=takes_maps)
        self.num_layers += is_hidden
        # After flattening, every unit has as many columns as its feature map has values.
        weight = specs.pop("weight")
        shape = (outputs, value.units, weight.numel // (outputs * value.units))
        self.tensors.append(PermutedTensor(weight.offset, shape, after.hidden, value.hidden))
        self._keep_units(specs, after)
        return after

    def _check_units(self, label: str, found: int, value: _Values, what: str) -> None:
        if value.hidden is not None and (found != value.units if value.is_exact else found % value.units):
            raise _error(f"{label} of {found} {what} for {value.units} units")

    def _keep_units(self, specs: Mapping[str, TensorSpec], value: _Values) -> None:
        """Tensors with one value, or as many as a unit has, for every unit."""
        if value.hidden is not None:
            shapes = {key: (value.units, 1, spec.numel // value.units) for key, spec in specs.items()}
            self.tensors += [PermutedTensor(specs[key].offset, shape, value.hidden) for key, shape in shapes.items()]


def _error(found: str) -> ValueError:
    return ValueError(f"{UNDERSTOOD}; found {found}")


def _owner(node: fx.Node) -> str:
    """Name of the module in whose `forward` a node is."""
    return next(reversed(node.meta.get("nn_module_stack", {"": None})))


def _sizes(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that are shapes and numbers of them, not tensors."""
    found: set[fx.Node] = set()
    for node in nodes:
        is_shape = node.op == "call_method" and node.target == "size"
        is_shape |= node.target is getattr and node.args[1] == "shape"
        if is_shape or (node.target in SIZE_OPERATORS and found >= set(node.all_input_nodes)):
            found.add(node)
    return found


def _flattens(node: fx.Node) -> bool:
    """Whether a function or method keeps the first dimension and flattens all others."""
    if node.target in (torch.flatten, "flatten"):
        first = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        last = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
        return (first, last) == (1, -1)
    if node.target not in (torch.reshape, "view", "reshape") or node.kwargs:
        return False
    shape = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    # `(len, -1)`, or `(-1, features)`, of which the layer that follows knows whether they are all.
    return len(shape) == 2 and -1 in shape


def _flat(value: _Values) -> _Values:
    return replace(value, are_maps=False, is_exact=value.is_exact and not value.are_maps)
