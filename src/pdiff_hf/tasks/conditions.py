"""The task of every row of a collection with conditions: labels of the same examples, as its condition gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..conditions import ConditionSpec


def condition_labels(
    classes: torch.Tensor, class_names: Sequence[str], spec: ConditionSpec | None, conditions: torch.Tensor
) -> torch.Tensor:
    """The labels by which networks are trained and judged that are made for these conditions.

    A subset of the classes is the task "is it one of these?"; conditions of all other kinds leave the labels of
    examples as they are.

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
    if spec is None or spec.kind != "classes":
        return classes.expand(len(conditions), -1)
    if unknown := [name for name in spec.names if name not in class_names]:
        raise ValueError(
            f"expected conditions on classes of the task, {', '.join(class_names)!s:.300}, found {unknown[0]!r}; give "
            "the task that the networks are made for."
        )
    # Classes that no condition can name are in no subset.
    members = torch.zeros(len(conditions), len(class_names), dtype=torch.int64)
    members[:, [list(class_names).index(name) for name in spec.names]] = conditions.long().cpu()
    return members.to(classes.device)[:, classes]
