"""The runs of a collection of many tasks: each has its task's labels, and is in the dataset of its task's role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property

import torch

from ..conditions import ConditionSpec
from ..wording import argument
from .collect_runs import CollectedRows, ZooCollector
from .conditions import condition_labels
from .families import Subset, task_name
from .families_config import TASKS, TasksConfig
from .populations import TrainExamples
from .splits import Split
from .task import Task

# By role, the config of the dataset: what generators are trained on has no other name.
ROLES = {"seen": "", "validation": "validation", "unseen": "unseen"}


# Logits of a network: "no" and "yes, it is one of these".
NUM_ANSWERS = 2


def check_classes(config: TasksConfig, task: Task) -> None:
    """Raise `ValueError` where the examples have other classes than the tasks."""
    if task.num_classes != config.num_classes:
        raise ValueError(
            f"expected num_classes={task.num_classes} of collect, the classes of {task.config.dataset}, found "
            f"{config.num_classes}; give {argument('num_classes', str(task.num_classes), key='num_classes')} where "
            "the recipe says ${num_classes}, or correct collect.num_classes."
        )


class TasksCollector(ZooCollector):
    """Of many tasks. Run `r` is of the task `r mod T` of T, seen ones first, then validation, then unseen."""

    config: TasksConfig

    @cached_property
    def spec(self) -> ConditionSpec:
        """Conditions are the subsets, and with `collect.metric` numbers of the rows beside them."""
        return self._with_metric(self._subsets)

    @cached_property
    def _subsets(self) -> ConditionSpec:
        return ConditionSpec.named("classes", self.task.class_names)

    @cached_property
    def tasks(self) -> tuple[Subset, ...]:
        """All, in the order of the runs."""
        return self.config.tasks.all

    def shares(self, run: int) -> Sequence[float]:
        """As [`ZooCollector.shares`]."""
        return self.config.at

    def seeds(self, run: int) -> tuple[int, int]:
        """As [`ZooCollector.seeds`]."""
        first = self.base_training.seed
        return (first, first + run // len(self.tasks)) if self.config.same_start else (first + run, first + run)

    def examples(self, run: int) -> TrainExamples:
        """All, with the labels of the run's task."""
        return TrainExamples(self._labels("train", [self.tasks[run % len(self.tasks)]])[0])

    def columns(self, run: int) -> dict[str, str]:
        """The run's task."""
        return {"task": task_name(self.tasks[run % len(self.tasks)], self.task.class_names)}

    def labels(self, split: Split, columns: Mapping[str, list]) -> torch.Tensor:
        """Those of every row's task."""
        return self._labels(split, [self._by_name[name] for name in columns["task"]])

    def datasets(self, columns: Mapping[str, list]) -> dict[str, CollectedRows]:
        """One for every role that tasks have, with conditions."""
        dealt = asdict(self.config.tasks)
        numbers = {f"num_{role}": len(tasks) for role, tasks in dealt.items()}
        found: dict[str, CollectedRows] = {}
        for role, config in ROLES.items():
            own = {task_name(task, self.task.class_names) for task in dealt[role]}
            rows = [row for row, name in enumerate(columns["task"]) if name in own]
            if rows:
                conditions = torch.tensor([self._subsets.values(self._by_name[columns["task"][row]]) for row in rows])
                conditions = torch.cat([conditions, self._metric(columns, rows)], 1)
                told = {"family": self.config.family, "split": self.config.split, "role": role, **numbers}
                given = rows, {"condition": conditions}, {TASKS: told}, self.spec
                found[config] = CollectedRows(*given)
        return found

    @cached_property
    def _by_name(self) -> dict[str, Subset]:
        return {task_name(task, self.task.class_names): task for task in self.tasks}

    def _labels(self, split: Split, tasks: Sequence[Subset]) -> torch.Tensor:
        conditions = torch.tensor([self._subsets.values(task) for task in tasks])
        return condition_labels(self.task.labels(split), self.task.class_names, self._subsets, conditions)
