"""Examples of a split as a training takes them, on its device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..host_copy import to_device
from .splits import Split

if TYPE_CHECKING:
    from .task import Task


class Examples:
    """Inputs and labels of a split on a device.

    Where they fit they are kept there, as small as they are stored, and an epoch takes one copy, that of its order.
    Else batches are made ahead of the training.

    Args:
        task ([`Task`]): Whose examples.
        split (`str`): `"train"`, `"val"` or `"test"`; train inputs are augmented, where the task says so.
        device (`torch.device`): Where they are.

    Attributes:
        labels (`torch.Tensor` of shape `(N,)`): Of all examples.
        is_kept (`bool`): Whether all inputs are on the device.
    """

    def __init__(self, task: Task, split: Split, device: torch.device):
        self._task, self._split, self.device = task, split, device
        self.labels = task.labels(split).to(device)
        self._kept = task.keep(split, device)
        self.is_kept = self._kept is not None

    def inputs(self, index: torch.Tensor, loaded: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs at positions of any shape `(…)`, of what is kept on the device or of a batch as it was loaded."""
        return self._task.finish(self._kept[index] if loaded is None else loaded)

    def batches(
        self, batch_size: int = 128, seed: int = 0, epoch: int = 0, among: torch.Tensor | None = None
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """What [`~Examples.inputs`] makes the batches of one epoch of, see [`Task.batch_indices`]; on the device.

        These are positions `(B,)`, and where inputs are not kept there, inputs as they are stored.
        """
        indices = self._task.batch_indices(self._split, batch_size, seed, epoch, among)
        order = to_device(indices, self.device)
        if self.is_kept:
            yield from ((index,) for index in order)
            return
        for index, loaded in zip(order, self._task.load(self._split, indices, (seed, epoch)), strict=True):
            yield index, to_device(loaded, self.device)
