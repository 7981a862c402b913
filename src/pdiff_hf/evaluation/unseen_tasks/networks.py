"""Networks of many tasks, each a subset of the classes, and what judges them by their own tasks' labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...data.vectors import Vectors
from ..evaluator import ParameterEvaluator
from ..outputs import EvaluatorOutput


@dataclass(frozen=True)
class TaskNetworks:
    """Trained networks of the tasks of one role, and the labels of these tasks.

    Args:
        vectors (`Vectors` of shape `(K, D)`): The networks.
        conditions (`torch.Tensor` of shape `(K, C)`): Of every network, 1 for a class of its subset, else 0.
        rows (`torch.Tensor` of shape `(K,)`, `int64`): The task of every network.
        names (`Sequence[str]`): Of the T tasks.
        evaluator ([`ParameterEvaluator`], *optional*): Judges networks by the labels of these tasks, its populations.
        majority (`torch.Tensor` of shape `(T,)`, *optional*): Share of the answer that is more
            frequent in training.
    """

    vectors: Vectors
    conditions: torch.Tensor
    rows: torch.Tensor
    names: Sequence[str]
    evaluator: ParameterEvaluator | None = None
    majority: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def distinct(self) -> torch.Tensor:
        """The subset of every task `(T, C)`."""
        return torch.stack([self.conditions[self.rows == task][0] for task in range(len(self))])

    def predict(
        self, networks: Vectors, tasks: torch.Tensor | None = None, keep: torch.Tensor | None = None
    ) -> EvaluatorOutput:
        """What networks `(n, D)` do, each judged by the labels of the task `(n,)` that it is for.

        Without `tasks`, they are as many for every task, one task after another. `keep` are the examples whose logits
        are wanted.
        """
        if tasks is None:
            tasks = torch.arange(len(self)).repeat_interleave(len(networks) // len(self))
        return self.evaluator.predict(networks, keep=keep, population=tasks)

    def mean_by_task(self, values: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """The means `(T,)` over the networks of every task, of what each `(n,)` has."""
        sums = torch.zeros(len(self), dtype=torch.float64).index_add_(0, tasks, values.double())
        return sums / torch.bincount(tasks, minlength=len(self))

    def mean_by_task_vectors(self) -> torch.Tensor:
        """The mean network `(T, D)` of every task."""
        sums = torch.zeros(len(self), self.vectors.shape[1], dtype=torch.float64)
        return (sums.index_add_(0, self.rows, self.vectors[:].double()) / torch.bincount(self.rows)[:, None]).float()


def task_pairs(conditions: torch.Tensor) -> torch.Tensor:
    """Of every task `(T, C)` the number of its group {S, complement} `(T,)`, in the order in which these appear."""
    own = conditions.int()
    # Of both, the one without the first class.
    keys = torch.where(own[:, :1] > 0, 1 - own, own)
    places: dict[tuple, int] = {}
    return torch.tensor([places.setdefault(tuple(key), len(places)) for key in keys.tolist()], dtype=torch.int64)
