"""The task of every row of a collection with conditions: labels of the same examples, as its condition gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..conditions import ConditionSpec
from ..data.dataset import ParameterDataset
from ..files import errors_of
from .families_config import ROLES, TASKS
from .splits import Split
from .task import Task


def row_subsets(dataset: ParameterDataset) -> tuple[ConditionSpec, torch.Tensor] | None:
    """Of which classes the tasks of rows are subsets, and that of every row `(K, C)`; `None` for other datasets.

    Conditions say it, or where these are sentences, what a collection says of its tasks.

    Raises:
        ValueError: as [`ParameterDataset.conditions`], or a row is of no task of the collection.
    """
    spec = dataset.condition_spec
    if spec is None:
        return None
    if (found := spec.part("classes")) is not None:
        return found[0], dataset.conditions()[:, found[1]]
    told = dataset.metadata.get(TASKS, {})
    if "subsets" not in told or dataset.tasks is None:
        return None
    classes = ConditionSpec.named("classes", told["classes"])
    with errors_of(dataset.source, KeyError):
        return classes, torch.tensor([classes.values(told["subsets"][name]) for name in dataset.tasks])


def rows_for(dataset: ParameterDataset, condition: Mapping[str, Any]) -> torch.Tensor:
    """The rows `(n,)` of a dataset of tasks that are for the task of a condition, as a pipeline takes it.

    Raises:
        ValueError: it is no condition of the dataset's kind.
    """
    spec = dataset.condition_spec
    _check_kinds(spec, condition)
    if spec.kind == "text" and isinstance(condition["text"], str):
        found = [text == condition["text"] for text in dataset.condition_texts]
        return torch.tensor(found).nonzero()[:, 0]
    place = spec.part(spec.kind if spec.kind == "text" else "classes")[1]
    wanted = torch.tensor(spec.values(condition if spec.parts else condition[spec.kind]))[place]
    return (dataset.conditions()[:, place] == wanted).all(1).nonzero()[:, 0]


def _check_kinds(spec: ConditionSpec, condition: Mapping[str, Any]) -> None:
    kinds = [part.kind for part in spec.parts or [spec]]
    if not isinstance(condition, Mapping) or {*condition} != {*kinds}:
        raise ValueError(f"expected an object of {', '.join(kinds)}, found {condition!r:.200}.")


def by_role(dataset: ParameterDataset) -> Iterator[ParameterDataset]:
    """The datasets of a collection, that of the tasks seen first."""
    for role in ROLES.values():
        if not role or (dataset.folder / role).is_dir():
            yield ParameterDataset(dataset.folder, role) if role else dataset


def subset_for(dataset: ParameterDataset, condition: Mapping[str, Any]) -> torch.Tensor:
    """The subset `(C,)` of the classes of [`row_subsets`] that a condition is for.

    Raises:
        ValueError: as [`rows_for`], or it is a sentence that no network of the collection was trained for.
    """
    spec = dataset.condition_spec
    _check_kinds(spec, condition)
    if (part := spec.part("classes")) is not None:
        return torch.tensor(spec.values(condition if spec.parts else condition[spec.kind]))[part[1]]
    for own in by_role(dataset):
        if len(rows := rows_for(own, condition)):
            return row_subsets(own)[1][rows[0]]
    raise ValueError(
        f"expected a sentence of a task of the collection, found {condition['text']!r:.200}: of others, nobody knows "
        "which answers are right."
    )


def have_own_tasks(dataset: ParameterDataset, task: object) -> bool:
    """Whether the networks of a dataset are for subsets of the task's classes, and have labels of their own."""
    found = row_subsets(dataset)
    return found is not None and isinstance(task, Task) and {*found[0].names} <= {*task.class_names}


def task_labels(dataset: ParameterDataset, task: Task, split: Split) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Labels `(N,)` of a split as every task of a dataset has them, by its name, and the task of every row `(K,)`."""
    spec, subsets = row_subsets(dataset)
    distinct, rows = subsets.unique(dim=0, return_inverse=True)
    labels = condition_labels(task.labels(split), task.class_names, spec, distinct)
    names = ["+".join(spec.describe(condition)) for condition in distinct.tolist()]
    return dict(zip(names, labels, strict=True)), rows


def class_labels(dataset: ParameterDataset, task: Task) -> torch.Tensor:
    """The label `(K, classes)` of every class in the task of every row of a dataset."""
    classes = torch.arange(task.num_classes)
    return condition_labels(classes, task.class_names, *row_subsets(dataset))


def condition_labels(
    classes: torch.Tensor, class_names: Sequence[str], spec: ConditionSpec | None, conditions: torch.Tensor
) -> torch.Tensor:
    """The labels by which networks are trained and judged that are made for these conditions.

    A subset of the classes, alone or as a part, is the task "is it one of these?"; conditions of all other kinds leave
    the labels of examples as they are.

    Args:
        classes (`torch.Tensor` of shape `(N,)`): Of every example, int64: [`Task.labels`].
        class_names (`Sequence[str]`): Names of the classes: [`Task.class_names`].
        spec ([`ConditionSpec`], *optional*): What the conditions are: [`ParameterDataset.condition_spec`].
        conditions (`torch.Tensor` of shape `(K, size)`): As they are stored: [`ParameterDataset.conditions`].

    Returns:
        `torch.Tensor` of shape `(K, N)`, int64: of subsets 1 for an example of one of its classes, else 0.

    Raises:
        ValueError: the conditions are subsets of other classes.
    """
    found = None if spec is None else spec.part("classes")
    if found is None:
        return classes.expand(len(conditions), -1)
    spec, place = found
    if unknown := [name for name in spec.names if name not in class_names]:
        raise ValueError(
            f"expected conditions on classes of the task, {', '.join(class_names)!s:.300}, found {unknown[0]!r}; give "
            "the task that the networks are made for."
        )
    # Classes that no condition can name are in no subset.
    members = torch.zeros(len(conditions), len(class_names), dtype=torch.int64)
    members[:, [list(class_names).index(name) for name in spec.names]] = conditions[:, place].long().cpu()
    return members.to(classes.device)[:, classes]
