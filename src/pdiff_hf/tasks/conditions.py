"""The task of every row of a collection with conditions: labels of the same examples, as its condition gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..conditions import ConditionSpec
from ..data.dataset import ParameterDataset
from .splits import Split
from .task import Task


def have_own_tasks(dataset: ParameterDataset, task: object) -> bool:
    """Whether the networks of a dataset are for subsets of the task's classes, and have labels of their own."""
    spec = dataset.condition_spec
    found = None if spec is None else spec.part("classes")
    return found is not None and isinstance(task, Task) and {*found[0].names} <= {*task.class_names}


def task_labels(dataset: ParameterDataset, task: Task, split: Split) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Labels `(N,)` of a split as every task of a dataset has them, by its name, and the task of every row `(K,)`."""
    spec, place = dataset.condition_spec.part("classes")
    distinct, rows = dataset.conditions()[:, place].unique(dim=0, return_inverse=True)
    labels = condition_labels(task.labels(split), task.class_names, spec, distinct)
    names = ["+".join(spec.describe(condition)) for condition in distinct.tolist()]
    return dict(zip(names, labels, strict=True)), rows


def class_labels(dataset: ParameterDataset, task: Task) -> torch.Tensor:
    """The label `(K, classes)` of every class in the task of every row of a dataset."""
    classes = torch.arange(task.num_classes)
    return condition_labels(classes, task.class_names, dataset.condition_spec, dataset.conditions())


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
