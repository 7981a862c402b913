"""What stays in float32, whatever a model is cast to or run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


class Float32Module(nn.Module):
    """A module whose tensors are moved between devices with its model, but not cast."""

    def _apply(self, fn, recurse: bool = True):
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Products as precise as their operands are; the device `meta` knows no autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
