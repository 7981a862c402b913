"""Trackers of experiments, through Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from .config import OptimizationConfig

PROJECT = "pdiff"


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
