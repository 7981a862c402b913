"""Permutations of hidden units that leave a network's function as it is, read off its graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..layout import ParameterLayout
from ..wrapped import unwrap

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Layers without parameters that treat every unit alike: everywhere, and of feature maps (B, C, H, W) only.
ELEMENTWISE = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout}
ELEMENTWISE |= {torch.relu, torch.tanh, torch.sigmoid, "relu", "tanh", "sigmoid"}
ELEMENTWISE |= {F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid, F.dropout}
POOLING = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d}
POOLING |= {F.max_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.dropout2d}
UNDERSTOOD = (
    "expected a chain of convolutions without groups, flattening and linear layers with element-wise activations, "
    "pooling, dropout and BatchNorm between them, every tensor selected once"
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
    """Find the hidden layers of an image classifier whose units may be permuted.

    The graph is traced by `torch.fx`. Known are chains, written as `nn.Sequential` or in a `forward` of one's own, of
    convolutions without groups, flattening and linear layers, with element-wise activations, pooling, dropout and
    BatchNorm between them.

    Raises:
        ValueError: the network is another one, has no hidden layer, or a tensor of its layers is not in the layout, so
            that it cannot be permuted; the layer is named.
    """
    steps = list(_chain(unwrap(model)))
    weighted = [name for name, operation in steps if type(operation) in WEIGHTED]
    if len(weighted) < 2:
        raise _error(f"{len(weighted)} linear layers or convolutions, so no hidden units")
    specs = {spec.name: spec for spec in layout.tensors}
    tensors: list[PermutedTensor] = []
    is_flat = False
    # The hidden layer before a step and its number of units; none before the first layer and after the last.
    hidden, units = None, 1
    for name, operation in steps:
        kind = type(operation) if isinstance(operation, nn.Module) else operation
        if kind is nn.Flatten:
            is_flat = True
            continue
        if kind in ELEMENTWISE or (kind in POOLING and not is_flat):
            continue
        label = f"{name!r} ({getattr(kind, '__name__', kind)})"
        if kind not in (*WEIGHTED, *NORMS) or is_flat != (kind in (nn.Linear, nn.BatchNorm1d)):
            raise _error(f"layer {label}")
        own = dict(operation.named_parameters())
        own |= {key: buffer for key, buffer in operation.named_buffers() if buffer.is_floating_point()}
        # Reparametrised layers, as with weight_norm, have other tensors.
        if kind in WEIGHTED and not {"weight"} <= set(own) <= {"weight", "bias"}:
            raise _error(f"layer {label} with the tensors {', '.join(own)}")
        for key in own:
            if f"{name}.{key}" not in specs:
                raise _error(f"that tensor '{name}.{key}' is tied or not selected")
        own = {key: specs[f"{name}.{key}"] for key in own}
        if kind in WEIGHTED:
            groups = 1 if is_flat else operation.groups
            if groups > 1 or operation.weight.shape[1] % units:
                raise _error(
                    f"layer {label} of {operation.weight.shape[1]} inputs in {groups} groups for {units} units"
                )
            layer = None if name == weighted[-1] else 0 if hidden is None else hidden + 1
            outputs = len(operation.weight)
            # After flattening, every unit has as many columns as its feature map has values.
            weight = (outputs, units, own["weight"].numel // (outputs * units))
            tensors.append(PermutedTensor(own["weight"].offset, weight, layer, hidden))
            hidden, units = layer, 1 if layer is None else outputs
            own = {key: spec for key, spec in own.items() if key == "bias"}
        elif operation.num_features % units:
            raise _error(f"layer {label} of {operation.num_features} features for {units} units")
        if hidden is not None:
            shapes = {key: (units, 1, spec.numel // units) for key, spec in own.items()}
            tensors += [PermutedTensor(own[key].offset, shape, hidden) for key, shape in shapes.items()]
    return PermutationSpec(layout.num_parameters, len(weighted) - 1, tuple(tensors))


def _error(found: str) -> ValueError:
    return ValueError(f"{UNDERSTOOD}; found {found}")


def _chain(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Name and module, function or method of every step from the images to the logits; flattening as `nn.Flatten`.

    Raises:
        ValueError: a step takes several tensors, as residual connections do, or a module runs twice.
    """
    try:
        graph = fx.Tracer().trace(nn.Sequential(model))
    except Exception as error:  # tracing passes on whatever the model's own code raises
        raise _error(f"that {type(model).__name__} cannot be traced ({str(error).splitlines()[0]})") from error
    previous, seen = None, set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if previous is not None:
                raise _error(f"a second input {node.name!r}")
            previous = node
            continue
        # Without the level that keeps a model of one layer from having no name.
        is_module = node.op == "call_module"
        owner = next(reversed(node.meta.get("nn_module_stack", {"0": None}))).removeprefix("0").removeprefix(".")
        name = str(node.target).removeprefix("0").removeprefix(".") if is_module else node.name
        if node.all_input_nodes != [previous]:
            where = f"layer {name!r}" if is_module else f"{name!r} in {owner or type(model).__name__!r}"
            raise _error(f"branches that part or meet at {where}")
        previous = node
        if node.op == "output":
            return
        if is_module:
            operation = model.get_submodule(name)
            if name in seen:
                raise _error(f"that layer {name!r} runs twice")
            seen.add(name)
            if type(operation) is nn.Flatten and (operation.start_dim, operation.end_dim) != (1, -1):
                raise _error(f"layer {name!r} ({operation})")
            yield name, operation
        elif node.target in (torch.flatten, "flatten") and (node.args[1:], node.kwargs) in (((1,), {}), ((1, -1), {})):
            yield name, nn.Flatten()
        else:
            yield name, node.target
