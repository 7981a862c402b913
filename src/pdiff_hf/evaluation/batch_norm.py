"""BatchNorm statistics that belong to generated tensors: re-estimated for finished networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from ..data.vectors import Vectors, take_rows
from ..forward import FullForward, forward_logits, split_if_exportable
from ..layout import ParameterLayout, TensorSpec
from ..wrapped import copy_network, own_state

STATISTICS = ("running_mean", "running_var")
# What `torch.nn.functional.batch_norm` calls, on the CPU, with cuDNN and with MIOpen: all take the same arguments.
_BATCH_NORMS = {
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten.cudnn_batch_norm.default,
    torch.ops.aten.miopen_batch_norm.default,
}


class BatchNormEstimator:
    """Re-estimates the running statistics of the BatchNorm layers whose input depends on the generated tensors.

    The images are passed in batches, with these layers and no others normalising by the batch, as in train mode; the
    statistics become the plain averages over the batches, as with `momentum=None`. Statistics that are generated
    themselves stay. What does not depend on the generated tensors is computed once per batch. Source: Izmailov et al.
    2018, arXiv 1803.05407, §3.2.

    Args:
        model (`nn.Module`): The base model; it is copied and not changed.
        layout ([`ParameterLayout`]): Which tensors are generated.
        images (`torch.Tensor` of shape `(N, C, H, W)`): Training images; those that fill no batch are left out.
        batch_size (`int`, *optional*, defaults to 256): Images per batch.
        device (`torch.device` or `str`, *optional*): Where to compute; where the model is by default.

    Attributes:
        layout ([`ParameterLayout`]): The generated tensors, followed by the re-estimated statistics.
        names (`list[str]`): All that is re-estimated, the counters of batches included.

    Raises:
        ValueError: no BatchNorm statistics depend on the generated tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        images: torch.Tensor,
        *,
        batch_size: int = 256,
        device: torch.device | str | None = None,
    ):
        self._device = torch.device(device) if device is not None else next(model.parameters()).device
        batch_size = min(batch_size, len(images))
        self._batches = images[: len(images) // batch_size * batch_size].split(batch_size)
        layers = dependent_batch_norms(model, layout, images[:2])
        if not layers:
            raise ValueError(
                "expected BatchNorm layers whose statistics depend on the generated tensors, found none; generate "
                "without re-estimating them."
            )
        names = [f"{name}.{statistic}" for name in layers for statistic in STATISTICS]
        self.layout = extended_layout(layout, model, names)
        self._statistics = self.layout.tensors[len(layout.tensors) :]
        self._counters = [f"{name}.num_batches_tracked" for name in layers]
        self.names = [*(spec.name for spec in self._statistics), *self._counters]
        full = FullForward(model, self._device)
        self._forward = split_if_exportable(full, self._batches[0].to(self._device), self.layout.names, "network")

    @torch.no_grad()
    def extend(self, vectors: torch.Tensor) -> torch.Tensor:
        """Append their statistics to networks `(B, D)`, vectors `(B, E)` of `self.layout` where they are."""
        num_given = vectors.shape[1]
        extended = nn.functional.pad(vectors, (0, self.layout.num_parameters - num_given))
        for batch in self._batches:
            activations = self._forward.prefix(batch.to(self._device))
            for row in extended:
                tensors = self.layout.unflatten(row.to(self._device))
                with _BatchStatistics(tensors) as seen:
                    self._forward.tail(activations, tensors)
                found = [torch.stack(seen.statistics[spec.name]).mean(0) for spec in self._statistics]
                row[num_given:] += torch.cat(found).to(row.device) / len(self._batches)
        return extended

    def state_dict(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """All tensors of a vector `(E,)` and the counters, to be loaded over the base model's with `strict=False`."""
        return {
            **self.layout.unflatten(vector),
            **{name: torch.tensor(len(self._batches)) for name in self._counters},
        }


class Reestimated:
    """Networks with re-estimated statistics beside networks with the base model's, in one `layout` for one evaluator.

    `statistics` are those of the generated networks, `(n, …)` by name; empty when nothing was re-estimated.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout, statistics: Mapping[str, torch.Tensor]):
        # Counters of batches play no part in the forward pass.
        own = {name: values for name, values in statistics.items() if values.is_floating_point()}
        self.layout = extended_layout(layout, model, own)
        self._own = torch.cat([values.flatten(1) for values in own.values()], 1) if own else None
        self._rest = self.layout.flatten(model)[layout.num_parameters :]

    def extend(self, vectors: Vectors, name: str = "") -> Vectors | ExtendedVectors:
        """Vectors `(n, E)` of the extended layout; the group `generated` has its own statistics."""
        if not self._rest.numel():
            return vectors
        own = self._own if name == "generated" and self._own is not None else self._rest.expand(len(vectors), -1)
        return ExtendedVectors(vectors, own)


class ExtendedVectors:
    """Vectors `(n, D)` with further columns `(n, F)` behind theirs, indexed by rows, which are put together then."""

    def __init__(self, vectors: Vectors, further: torch.Tensor):
        self._vectors, self._further = vectors, further
        self.shape, self.ndim = torch.Size((len(vectors), vectors.shape[1] + further.shape[1])), 2

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        own = self._vectors[rows]
        return torch.cat([own, self._further[rows].to(own)], 1)

    def take(self, rows: torch.Tensor) -> ExtendedVectors:
        """Some of the rows."""
        return ExtendedVectors(take_rows(self._vectors, rows), self._further[rows])


def extended_layout(layout: ParameterLayout, model: nn.Module, names: Iterable[str]) -> ParameterLayout:
    """A layout, followed by further floating-point tensors of a model.

    Raises:
        ValueError: the model has no such tensor.
    """
    tensors, specs, offset = own_state(model), list(layout.tensors), layout.num_parameters
    for name in names:
        if name not in tensors:
            raise ValueError(f"tensor {name!r}: expected one of the model's, found none of this name.")
        dtype = str(tensors[name].dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, tuple(tensors[name].shape), offset, dtype))
        offset += tensors[name].numel()
    return ParameterLayout(tuple(specs))


def dependent_batch_norms(model: nn.Module, layout: ParameterLayout, images: torch.Tensor) -> list[str]:
    """Names of the BatchNorm layers with statistics that depend on the generated tensors and are not among them.

    Found by a forward pass of a copy of the model on some images `(N, C, H, W)`.
    """
    model = copy_network(model).eval()
    generated, found = set(layout.names), []
    # A gradient is asked for where a tensor depends on the generated ones, and nowhere else.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in generated)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            if not generated & {f"{name}.{statistic}" for statistic in STATISTICS}:
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name: found.append(name) if inputs[0].requires_grad else None
                )
    with torch.enable_grad():
        forward_logits(model, images.to(next(model.parameters()).device))
    return list(dict.fromkeys(found))


class _BatchStatistics(TorchDispatchMode):
    """Makes BatchNorm layers normalise by the batch, and notes means and unbiased variances of their batches.

    Layers are known by their running statistics: `tensors` are the very objects that they are given, by name.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self.statistics: dict[str, list[torch.Tensor]] = defaultdict(list)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in _BATCH_NORMS or id(args[3]) not in self._names:
            return func(*args, **(kwargs or {}))
        x, weight, bias, running_mean, running_var, _, momentum, eps = args
        variance, mean = torch.var_mean(x.float(), [dim for dim in range(x.ndim) if dim != 1])
        self.statistics[self._names[id(running_mean)]].append(mean)
        self.statistics[self._names[id(running_var)]].append(variance)
        return func(x, weight, bias, None, None, True, momentum, eps)
