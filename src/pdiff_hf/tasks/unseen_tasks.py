"""Networks of the tasks of a collection, by their role, with what judges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..data.dataset import ParameterDataset
from ..evaluation.unseen_tasks.networks import TaskNetworks
from .conditions import by_role, row_subsets, rows_for, task_labels
from .evaluators import make_task_evaluator
from .families_config import ROLES
from .splits import Split
from .task import Task


def open_task_networks(
    dataset: ParameterDataset, role: str, task: Task, split: Split | None = None, **options
) -> TaskNetworks:
    """Networks of the tasks of a role, `seen`, `validation` or `unseen`, of the collection that has those seen.

    Without a `split` of the examples, nothing judges them. `options` are those of [`make_evaluator`].

    Raises:
        ValueError: the collection has no tasks of this role, or one is not as it was collected.
    """
    own = dataset if role == "seen" else ParameterDataset(dataset.folder, ROLES[role])
    labels, rows = task_labels(own, task, "train")
    networks = TaskNetworks(own.vectors(), row_subsets(own)[1], rows, [*labels])
    if split is None:
        return networks
    evaluator = make_task_evaluator(own, split, task, **options)
    answers = torch.stack([*labels.values()]).double().mean(1).round().long()
    majority = (evaluator.targets.cpu() == answers[:, None]).double().mean(1)
    return replace(networks, evaluator=evaluator, majority=majority)


def networks_for(dataset: ParameterDataset, condition: Mapping[str, Any]) -> torch.Tensor | None:
    """Networks `(n, D)` of a collection that were trained on the task of a condition, whatever its role; or `None`."""
    own = ((part, rows_for(part, condition)) for part in by_role(dataset))
    found = [part.vectors()[rows] for part, rows in own if len(rows)]
    return torch.cat(found) if found else None


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
