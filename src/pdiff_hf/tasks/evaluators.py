"""The task that a parameter dataset was collected on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.dataset import read_layout
from ..evaluation.evaluator import ParameterEvaluator
from ..files import read_json
from ..machine import process_state
from .auto import load_task
from .task import Task


def load_stored_task(dataset_dir: str | Path) -> Task | None:
    """The task named in `stats.json` of a parameter dataset, or `None` when it names none.

    Raises:
        ValueError: the examples are not where the dataset says.
    """
    metadata = read_json(Path(dataset_dir) / "stats.json")["metadata"]
    return load_task(metadata["task"], read_layout(dataset_dir)[1]) if "task" in metadata else None


def make_val_evaluator(
    dataset_dir: str | Path,
    task: Task | None,
    device: str | None = None,
    trusted_imports: Sequence[str] = (),
) -> ParameterEvaluator | None:
    """An evaluator on the validation examples for the gate, or `None` without a task or base model."""
    layout, base_model = read_layout(dataset_dir)
    if task is None or base_model is None:
        return None
    return ParameterEvaluator(
        base_model.build(trusted_imports), layout, *task.arrays("val"), device=device, accelerator=process_state()
    )
