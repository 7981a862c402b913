"""Networks of the tasks of a collection, by their role, with what judges them."""

from __future__ import annotations

import torch

from ..data.dataset import ParameterDataset
from ..evaluation.unseen_tasks.networks import TaskNetworks
from .collect_tasks import ROLES
from .evaluators import make_task_evaluator
from .splits import Split
from .task import Task

# Of networks of a role, the examples that they are judged on: what is compared is chosen on validation examples.
JUDGED_ON: dict[str, Split] = {"seen": "val", "validation": "val", "unseen": "test"}


def open_task_networks(dataset: ParameterDataset, role: str, task: Task, **options) -> TaskNetworks:
    """Networks of the tasks of a role, `seen`, `validation` or `unseen`, of the collection that has those seen.

    `options` are those of [`make_evaluator`].

    Raises:
        ValueError: the collection has no tasks of this role, or one is not as it was collected.
    """
    own = dataset if role == "seen" else ParameterDataset(dataset.folder, ROLES[role])
    evaluator = make_task_evaluator(own, JUDGED_ON[role], task, **options)
    train = make_task_evaluator(own, "train", task, **options).targets
    answers = train.float().mean(1).round().long()
    majority = (evaluator.targets == answers[:, None]).double().mean(1).cpu()
    conditions, rows = own.conditions(), evaluator.rows
    names = [""] * (int(rows.max()) + 1)
    for row, name in zip(rows.tolist(), own.tasks, strict=True):
        names[row] = name
    return TaskNetworks(own.vectors(), conditions, rows, names, evaluator, majority)


def has_task_networks(dataset: ParameterDataset) -> bool:
    """Whether a collection has networks of validation and of unseen tasks, which generated ones are compared with."""
    return all((dataset.folder / ROLES[role]).is_dir() for role in ("validation", "unseen"))


def places_of(conditions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The rows `(n,)` of `wanted` `(T, C)` that conditions `(n, C)` are.

    Raises:
        ValueError: a condition is none of them, or they are not as many of each.
    """
    is_same = (conditions[:, None] == wanted).all(2)
    counts = is_same.sum(0)
    if not bool(is_same.any(1).all()) or counts.min() != counts.max():
        raise ValueError(
            f"expected as many networks for each of the {len(wanted)} unseen tasks of the dataset and for no other, "
            f"found {len(conditions)} networks for {int((counts > 0).sum())} of them; generate them by pdiff run."
        )
    return is_same.int().argmax(1)
