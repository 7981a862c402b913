"""Copies between the host and an accelerator: few of them, and none that is waited for before it is needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

# Values that are put together on an accelerator for one copy, 1 GiB; a larger tensor is one of its own.
BLOCK_VALUES = 2**28


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; on an accelerator it is queued behind the work there, and nobody waits for it."""
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def copy_values(tensors: Sequence[torch.Tensor], vector: torch.Tensor, non_blocking: bool = False) -> None:
    """Copy the values of tensors, one tensor after the other, into a float32 vector `(n,)` on the host.

    What lies on an accelerator is put together there and copied at once; with `non_blocking`, nobody waits for it.
    """
    start = 0
    for values in _blocks(tensors):
        vector[start : start + len(values)].copy_(values, non_blocking=non_blocking)
        start += len(values)


def host_copies(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies of tensors on the host, in their own types; of an accelerator's, one copy moves a type."""
    sizes: Counter[tuple[torch.device, torch.dtype]] = Counter()
    blocks: dict[tuple[torch.device, torch.dtype, int], list[str]] = {}
    for name, tensor in state.items():
        kind = tensor.device, tensor.dtype
        blocks.setdefault((*kind, sizes[kind] // BLOCK_VALUES), []).append(name)
        sizes[kind] += tensor.numel()
    found = {}
    for (device, *_), names in blocks.items():
        flat = [state[name].detach().reshape(-1) for name in names]
        if device.type != "cpu":
            flat = torch.cat(flat).cpu().split([len(values) for values in flat])
        found |= {name: values.view(state[name].shape).clone() for name, values in zip(names, flat, strict=True)}
    return {name: found[name] for name in state}


def _blocks(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The values of all tensors as vectors `(n,)`: on the host one of each tensor, on an accelerator one of many."""
    starts = itertools.accumulate((tensor.numel() for tensor in tensors), initial=0)
    places = ((tensor.device, start // BLOCK_VALUES) for tensor, start in zip(tensors, starts, strict=False))
    for (device, _), group in itertools.groupby(zip(places, tensors, strict=True), lambda pair: pair[0]):
        own = [tensor.detach().reshape(-1) for _, tensor in group]
        if device.type == "cpu":
            yield from own
        else:
            yield torch.cat(own).float()


class HostCopy:
    """Copies groups of tensors to the host time and again; from an accelerator into the same pinned memory.

    A copy is queued behind what computes its values: they may change, and the host may go on, as soon as
    [`~HostCopy.start`] returns.
    """

    def __init__(self):
        self._pinned = torch.empty(0)
        self._parts: Sequence[torch.Tensor] = ()
        self._events: list[torch.Event] = []

    def start(self, groups: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Begin to copy the values of tensors, as float32; `True` when there is something to wait for."""
        tensors = [tensor for group in groups for tensor in group]
        sizes = [sum(tensor.numel() for tensor in group) for group in groups]
        devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}
        if devices and len(self._pinned) < sum(sizes):
            self._pinned = torch.empty(sum(sizes), pin_memory=True)
        vector = self._pinned[: sum(sizes)] if devices else torch.empty(sum(sizes))
        copy_values(tensors, vector, non_blocking=bool(devices))
        self._parts, self._events = vector.split(sizes), [torch.Event(device) for device in devices]
        for event, device in zip(self._events, devices, strict=True):
            event.record(torch.accelerator.current_stream(device))
        return bool(devices)

    def finish(self) -> Sequence[torch.Tensor]:
        """Of every group that was begun last a vector `(n,)`, when all are complete; valid until the next ones are."""
        for event in self._events:
            event.synchronize()
        parts, self._parts = self._parts, ()
        return parts
