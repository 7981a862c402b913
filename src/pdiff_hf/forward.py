"""The forward pass of a base model, cut where it begins to depend on the generated tensors."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.fx import Node
from torch.fx.passes.split_module import split_module
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .exported import export_forward
from .peft_model import called_network
from .wrapped import copy_network, unwrap

# Parts of the graph, in the order in which they run.
CONSTANT, PREFIX, TAIL = range(3)
# Of the largest activation of a prefix, what a CPU computes at once: more is no faster, and the system gives memory
# for larger ones anew each time.
PREFIX_BYTES = 2**24


def _batch_norm(x, weight, bias, mean, var, momentum, eps):
    return torch.ops.aten.native_batch_norm.default(x, weight, bias, mean, var, False, momentum, eps)


def _differentiable_batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    """The same by products and sums, through which gradients reach the running statistics."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    factor = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    return x * factor.view(shape) + shift.view(shape), mean, var


def _adaptive_avg_pool2d(x, output_size):
    if list(output_size) == [1, 1]:
        return x.mean((-2, -1), keepdim=True)
    return torch.ops.aten._adaptive_avg_pool2d.default(x, output_size)


def _conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    sizes = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    if groups == 1 and all(size == 1 and 2 * pad == step * (taps - 1) for size, taps, pad, step in sizes):
        # A single pixel meets the middle of the kernel only, the rest of it meets padding.
        # A copy, so that its memory is contiguous: products would make one each time.
        middle = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2].contiguous()
        return torch.ops.aten.linear.default(x.flatten(1), middle, bias)[:, :, None, None]
    return torch.ops.aten.convolution.default(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)


# Equal operations that have a batching rule for vmap, for those that lack one, or that cost less.
DECOMPOSITIONS = {
    torch.ops.aten.conv2d.default: _conv2d,
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
}


class UnusedTensorsError(ValueError):
    """The logits do not depend on any generated tensor."""


class FullForward(nn.Module):
    """The whole forward pass for every network: what remains when the model cannot be exported.

    Images and the kernels of convolutions are channels-last, which is faster on CPUs and GPUs.

    Args:
        model (`nn.Module`): The base model. What is in its wrappers is copied, so the original may be trained on.
        device (`torch.device`): Where the copy lives.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__()
        self.model = copy_network(model).to(device).eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(N, classes)` of the base model."""
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return forward_logits(self.model, images)

    def prefix(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the tail needs besides the generated tensors: the images."""
        return (images,)

    def tail(self, activations: tuple[torch.Tensor, ...], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits `(N, classes)` of the network with the generated `tensors`."""
        state = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(self, state, activations)


class SplitForward:
    """The exported forward pass in three parts: constants, prefix (of the images) and tail (of the generated tensors).

    The graph of `torch.export` is functionalised and cut by `torch.fx.passes.split_module`. The constants are computed
    here; what remains are `prefix` and `tail`, as in [`FullForward`].

    Args:
        full ([`FullForward`]): The base model.
        images (`torch.Tensor`): A batch of inputs; only batches of this shape can be computed later.
        names (`Collection[str]`): Names of the generated tensors. Tied weights have one name; all aliases follow it.
        differentiable (`bool`, *optional*, defaults to `False`): Whether gradients reach all of them, also running
            statistics; results then differ by rounding.

    Raises:
        UnusedTensorsError: the logits do not depend on any generated tensor.
        RuntimeError: the model writes to its own state in eval mode.
    """

    def __init__(self, full: FullForward, images: torch.Tensor, names: Collection[str], differentiable: bool = False):
        exported = export_forward(full, images, DECOMPOSITIONS)
        module = exported.at(len(images))

        # 1. What the placeholders are: the images, generated tensors (aliases of one are the same object) or values
        state = dict(full.named_parameters(remove_duplicate=False)) | dict(full.named_buffers(remove_duplicate=False))
        first_names = {id(state[f"model.{name}"]): name for name in names}
        generated: dict[str, str] = {}
        values: dict[str, torch.Tensor] = {}
        for placeholder, target in exported.inputs.items():
            tensor = state.get(target)
            if target == "":
                images_name = placeholder
            elif id(tensor) in first_names:
                generated[placeholder] = first_names[id(tensor)]
            else:
                values[placeholder] = exported.constants[target] if tensor is None else tensor

        # 2. The part of every node: the latest of its inputs' parts
        parts: dict[Node, int] = {}
        for node in module.graph.nodes:
            own = TAIL if node.name in generated else PREFIX if node.name == images_name else CONSTANT
            parts[node] = max([own, *(parts[source] for source in node.all_input_nodes)])
        if parts[module.graph.output_node()] != TAIL:
            raise UnusedTensorsError(
                "expected logits that depend on the generated tensors, found that the model uses none of "
                f"{sorted(names)}; select other tensors"
            )
        calls = [node for node in module.graph.nodes if node.op == "call_function"]
        tail_calls = [node for node in calls if parts[node] == TAIL]
        self.num_nodes = len(calls)
        self.num_dependent_nodes = len(tail_calls)
        self.has_convolutions = any(node.target == torch.ops.aten.convolution.default for node in tail_calls)
        # Assertions, as of a tensor's type, have no value.
        self.max_activation_bytes = max(node.meta.get("bytes", 0) for node in tail_calls)
        if differentiable:
            for node in calls:
                if node.target is torch.ops.aten.native_batch_norm.default:
                    node.target = _differentiable_batch_norm

        # 3. Modules of the parts and what they take; the constant part runs here
        graph = split_module(module, None, parts.get)
        calls = {node.target: node for node in graph.graph.nodes if node.op == "call_module"}
        self._call = {part: calls.get(f"submod_{part}") for part in (CONSTANT, PREFIX, TAIL)}
        self._module = {part: graph.get_submodule(node.target) for part, node in self._call.items() if node}
        self._constants: dict[Node, torch.Tensor] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder" and node.name in values:
                self._constants[node] = values[node.name]
            elif node.op == "placeholder" and node.name == images_name:
                self._images = node
        with torch.no_grad():
            self._run(CONSTANT, self._constants)

        # 4. The same for fewer images, of which a CPU computes those of a batch
        largest = max((node.meta.get("bytes", 0) for node in module.graph.nodes if parts[node] == PREFIX), default=0)
        size = len(images) * PREFIX_BYTES // max(1, largest)
        self._part_size, self._part = max(2, size), None
        if images.device.type == "cpu" and self._part_size < len(images) and self._part_size in exported.batch_sizes:
            part = SplitForward(full, images[: self._part_size], names, differentiable)
            if all(len(activation) == self._part_size for activation in part.prefix(images[: self._part_size])):
                self._part = part

        # 5. Arguments of the tail: the name of a generated tensor, the position of an activation, or a constant
        self._activations: list[Node] = []
        self._slots: list[str | int | torch.Tensor] = []
        for node in self._call[TAIL].args:
            if node.name in generated:
                self._slots.append(generated[node.name])
            elif _source(node) in self._constants:
                self._slots.append(_resolve(node, self._constants))
            else:
                self._slots.append(len(self._activations))
                self._activations.append(node)

    def _run(self, part: int, known: dict[Node, torch.Tensor]) -> None:
        if self._call[part] is not None:
            arguments = [_resolve(node, known) for node in self._call[part].args]
            known[self._call[part]] = self._module[part](*arguments)

    def prefix(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Activations of a batch that the tail needs, each of which owns its memory."""
        if self._part is not None:
            # The last part overlaps the one before: the graph knows one size.
            starts = range(0, len(images), self._part_size)
            firsts = [min(start, len(images) - self._part_size) for start in starts]
            found = [self._part.prefix(images[first : first + self._part_size]) for first in firsts]
            parts = zip(starts, firsts, found, strict=True)
            kept = [[activation[start - first :] for activation in part] for start, first, part in parts]
            return tuple(map(torch.cat, zip(*kept, strict=True)))
        known = {**self._constants, self._images: images}
        self._run(PREFIX, known)
        activations = [_resolve(node, known) for node in self._activations]
        # A small view would keep the large tensor behind it alive.
        is_view = [a is not images and a.untyped_storage().nbytes() > a.nbytes for a in activations]
        return tuple(a.clone() if view else a for a, view in zip(activations, is_view, strict=True))

    def tail(self, activations: tuple[torch.Tensor, ...], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits `(N, classes)` of the network with the generated `tensors`."""
        sources = {str: tensors, int: activations}
        arguments = (sources[type(slot)][slot] if type(slot) in sources else slot for slot in self._slots)
        return self._module[TAIL](*arguments)


def _source(node: Node) -> Node:
    """The call or placeholder behind a chain of `getitem`."""
    return _source(node.args[0]) if node.op == "call_function" else node


def _resolve(node: Node, known: Mapping[Node, torch.Tensor]) -> torch.Tensor:
    if node in known:
        return known[node]
    source, index = node.args
    return _resolve(source, known)[index]


def split_if_exportable(
    full: FullForward, images: torch.Tensor, names: Collection[str], unit: str, differentiable: bool = False
) -> SplitForward | FullForward:
    """Split a forward pass, or return it as it is, with a warning, when its model cannot be exported.

    The warning says that every `unit` will cost a full forward pass. Arguments are those of [`SplitForward`].

    Raises:
        UnusedTensorsError: the logits do not depend on the generated tensors.
    """
    try:
        return SplitForward(full, images, names, differentiable)
    except UnusedTensorsError:
        raise
    except Exception as error:  # torch.export passes on whatever the model's own code raises
        warnings.warn(
            f"{type(full.model).__name__} cannot be exported, every {unit} will cost a full forward pass "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            stacklevel=3,
        )
        return full


def forward_logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits `(N, classes)`, float32, of a model that returns a tensor or a transformers `ModelOutput`.

    Inputs are images `(N, C, H, W)`, which are given to it in its own type, or token ids `(N, L)` int64, of which a
    transformers model attends to all but the padding token of its configuration.
    """
    # Only where it is another one: torch.export notes every conversion.
    if inputs.is_floating_point() and inputs.dtype != (dtype := input_dtype(model)):
        inputs = inputs.to(dtype)
    model = called_network(model)
    if isinstance(unwrap(model), PreTrainedModel) and not inputs.is_floating_point():
        mask = (inputs != model.config.pad_token_id).to(inputs.dtype)
        output = model(input_ids=inputs, attention_mask=mask)
    else:
        output = model(inputs)
    logits = output.logits if isinstance(output, ModelOutput) else output
    return logits if logits.dtype == torch.float32 else logits.float()


def input_dtype(model: nn.Module) -> torch.dtype:
    """The type in which a network takes images: that of its first weights, norms, which may have another, aside."""
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return next((parameter.dtype for parameter in (*(p for p in floats if p.ndim > 1), *floats)), torch.float32)
