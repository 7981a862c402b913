"""Which step of a training is kept: the best one by rows that were not trained on, the beginning included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..evaluation.intervals import sample_mean_interval
from ..machine import precision_of
from .ema import placed_like, whole_tensor

# Steps that are compared, beside step 0.
NUM_CANDIDATES = 10


def candidate_steps(num_steps: int, with_first: bool) -> list[int]:
    """Steps of a training that are compared, evenly spaced and the last one among them; with step 0 if asked for."""
    steps = {round(num_steps * i / NUM_CANDIDATES) for i in range(1, NUM_CANDIDATES + 1)} - {0}
    return sorted(steps | {0} if with_first else steps)


class StepChoice:
    """Keeps the weights of the step with the smallest mean loss on validation rows.

    Step 0, where the denoiser is its Gaussian, is left only for one whose losses are smaller beyond doubt: the 95 %
    interval of the paired difference excludes 0.

    Args:
        losses (`Callable`): Maps the model to its losses `(n,)` on the validation rows.
        steps (`Sequence[int]`): After which steps of training it is asked.
    """

    def __init__(self, losses: Callable[[nn.Module], torch.Tensor], steps: Sequence[int]):
        self._losses, self.steps = losses, frozenset(steps)
        self.kept_step: int | None = None
        self.curve: dict[int, float] = {}
        self._first: torch.Tensor | None = None
        self._best: torch.Tensor | None = None
        self._parameters: Sequence[nn.Parameter] = ()
        self._kept: list[torch.Tensor] = []

    def of(self, parameters: Sequence[nn.Parameter]) -> None:
        """Whose values are kept."""
        self._parameters = parameters

    @torch.no_grad()
    @precision_of("evaluation")
    def consider(self, step: int, model: nn.Module) -> None:
        """Ask for the losses of the model after a step, and keep its parameters if they are the best so far."""
        losses = self._losses(model)
        self.curve[step] = losses.mean().item()
        if step == 0:
            self._first = losses
        if self._best is None or self._is_better(losses):
            self.kept_step, self._best = step, losses
            self._kept = [parameter.detach().clone() for parameter in self._parameters]

    def _is_better(self, losses: torch.Tensor) -> bool:
        if not losses.mean() < self._best.mean():
            return False
        if self._first is None:
            return True
        # One row leaves doubt about everything.
        interval = sample_mean_interval(losses - self._first)
        return interval is not None and interval[1] < 0

    @torch.no_grad()
    def restore(self) -> None:
        """Put what is kept into the parameters."""
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; with FSDP every process has to call this, as shards are gathered."""
        losses = {"first": self._first, "best": self._best}
        kept = [whole_tensor(tensor) for tensor in self._kept]
        return {"kept_step": self.kept_step, "curve": self.curve, **losses, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state onto the devices, and into the shards, of the parameters."""
        self.kept_step, self.curve = state["kept_step"], state["curve"]
        self._first, self._best = state["first"], state["best"]
        # Nothing is kept yet before the first step that is compared.
        own = self._parameters if state["kept"] else []
        self._kept = [placed_like(present, kept) for present, kept in zip(own, state["kept"], strict=True)]
