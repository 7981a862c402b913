"""The moving average of weights that may be sharded over processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedEMA(EMAModel):
    """diffusers' `EMAModel`, whose state holds whole tensors wherever the averages are.

    So a state that n processes have saved can be loaded by any number of them, on any device.
    """

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Copy the averages into `parameters`; one by one, as sharded tensors cannot be copied together."""
        for parameter, average in zip(parameters, self.shadow_params, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """The state; with FSDP every process has to call this, as shards are gathered."""
        state = super().state_dict()
        return {**state, "shadow_params": [whole_tensor(tensor) for tensor in self.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state onto the devices, and into the shards, of the present averages."""
        present = self.shadow_params
        super().load_state_dict(state_dict)
        for index, (loaded, own) in enumerate(zip(self.shadow_params, present, strict=True)):
            self.shadow_params[index] = placed_like(own, loaded)


def placed_like(own: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device, in the type and in the shards of another one."""
    whole = whole.to(own.device, own.dtype)
    return distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or the whole of a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
