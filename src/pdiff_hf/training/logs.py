"""Logs of a training run: its losses, in a file and by trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..models.config import OptimizationConfig

PROJECT = "pdiff"
LOG_FILE = "train_log.jsonl"


class NonFiniteLossError(ValueError):
    """The loss or the gradient became NaN or infinite."""


class LossHistory:
    """Losses of the steps since the last entry, and the entries `{"step", "loss", "lr"}`, means over all processes.

    `entries` and `pending`, the losses since the last one, are those of a checkpoint.
    """

    def __init__(
        self, accelerator: Accelerator, entries: list[dict] | None = None, pending: list[float] | None = None
    ):
        self._accelerator = accelerator
        self.entries = entries or []
        zero = torch.zeros((), device=accelerator.device)
        self._steps = [torch.stack([zero + loss, zero]) for loss in pending or []]

    def add(self, losses: list[torch.Tensor], gradient_norm: torch.Tensor) -> None:
        """Note the losses of one step's accumulation steps and the norm of its gradient, without waiting for them."""
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        self._steps.append(torch.stack([loss.float(), gradient_norm.float()]))

    def pending(self, step: int) -> list[float]:
        """Mean losses of the steps since the last entry, up to `step`.

        Raises:
            NonFiniteLossError: one of them, or a gradient, is not finite. All processes raise, and name that step.
        """
        if not self._steps:
            return []
        losses, norms = self._accelerator.reduce(torch.stack(self._steps, 1), reduction="mean").tolist()
        for index, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            for name, value in (("loss", loss), ("norm of the gradient", norm)):
                if not math.isfinite(value):
                    raise NonFiniteLossError(f"the {name} is {value} at step {step - len(losses) + 1 + index}")
        return losses

    def log(self, step: int, lr: float) -> dict[str, float]:
        """Make an entry of the steps since the last one; raises as [`LossHistory.pending`]."""
        losses = self.pending(step)
        self.entries.append({"step": step, "loss": sum(losses) / len(losses), "lr": lr})
        self._steps = []
        return self.entries[-1]


def write_log(folder: Path, entries: Iterable[Mapping[str, float]]) -> None:
    """Write the entries of a history to `folder/train_log.jsonl`."""
    (folder / LOG_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def check_tracker(name: str) -> None:
    """Raise `ValueError` when the package of a tracker is missing, which Accelerate would pass over in silence."""
    if name != "none" and name not in map(str, get_available_trackers()):
        raise ValueError(
            f'report_to={name}: expected the package {name}, found that it is not installed; pip install "pdiff-hf'
            f'[{name}]" or set report_to to none.'
        )


@contextmanager
def tracking(accelerator: Accelerator, config: OptimizationConfig, description: str) -> Iterator[None]:
    """Start the tracker of `config` for a stage, and finish it however the stage ends.

    wandb is offline with `WANDB_MODE=offline` in the environment; its files and TensorBoard's are in
    `output_dir/logs`.
    """
    if config.report_to != "none":
        # TensorBoard takes nothing but scalars and text.
        values = {key: str(v) if v is None or isinstance(v, tuple) else v for key, v in config.model_dump().items()}
        logs = Path(accelerator.logging_dir)
        if accelerator.is_main_process:
            logs.mkdir(parents=True, exist_ok=True)
        options = {"wandb": {"dir": str(logs), "name": description}, "trackio": {"name": description}}
        accelerator.init_trackers(PROJECT, values, {key: v for key, v in options.items() if key == config.report_to})
    try:
        yield
    finally:
        # Not end_training(), which also destroys the process group that the next stage needs.
        for tracker in accelerator.trackers:
            tracker.finish()
