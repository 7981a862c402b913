"""Task and evaluators of a parameter dataset: the only place where they are made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..data.dataset import ParameterDataset
from ..evaluation.evaluator import ParameterEvaluator
from ..files import errors_of
from ..layout import ParameterLayout
from ..machine import process_state
from .auto import load_task
from .populations import population_labels
from .task import Task


def open_task(dataset: ParameterDataset) -> Task | None:
    """The task that a parameter dataset was collected on, or `None` when it names none.

    Raises:
        ValueError: the examples are not where the dataset says.
    """
    if dataset.task is None:
        return None
    with errors_of(f"task of {dataset.folder / 'stats.json'}"):
        return load_task(dataset.task, dataset.base_model)


def require_task(dataset: ParameterDataset) -> Task:
    """As [`open_task`]; raises `ValueError` when the dataset names no task, or no base model to evaluate networks."""
    if missing := [name for name in ("task", "base_model") if getattr(dataset, name) is None]:
        raise ValueError(
            f"{dataset.folder} names no {missing[0].replace('_', ' ')}; to evaluate networks, a dataset needs a task "
            "and a base model."
        )
    return open_task(dataset)


def make_evaluator(
    dataset: ParameterDataset,
    split: str,
    task: Task | None = None,
    *,
    model: nn.Module | None = None,
    layout: ParameterLayout | None = None,
    **options: Any,
) -> ParameterEvaluator:
    """An evaluator of the dataset's networks, which shares them among the processes of `accelerate launch`.

    Task, base model and layout of the vectors are those of the dataset, unless they are given. `split` is `"train"`,
    `"val"` or `"test"`, and `options` are those of [`ParameterEvaluator`]: `batch_size` and so on. Of several
    populations, a network is judged by the labels that it fits best.

    Raises:
        ValueError: see [`require_task`] and [`BaseModel.build`].
    """
    task = task or require_task(dataset)
    state = process_state()
    known = {"device": state.device, "accelerator": state, "identity": dataset.identity}
    return ParameterEvaluator(
        model or dataset.base_model.build(),
        layout or dataset.layout,
        *task.arrays(split),
        populations=_told_apart(population_labels(task, dataset.metadata, split)),
        **{**known, **options},
    )


def _told_apart(labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Populations with labels of their own; those with the same labels are one, by all of their names."""
    names: dict[bytes, list[str]] = {}
    for name, own in labels.items():
        names.setdefault(own.numpy().tobytes(), []).append(name)
    return {", ".join(same): labels[same[0]] for same in names.values()}


def make_gate_evaluator(dataset: ParameterDataset, task: Task | None = None) -> ParameterEvaluator | None:
    """What the gate measures accuracies with, on the validation examples; `None` where nobody knows how."""
    is_known = dataset.base_model is not None and (task or dataset.task) is not None
    return make_evaluator(dataset, "val", task) if is_known else None
