"""The runs of a collection of many tasks: each has its task's labels, and is in the dataset of its task's role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from ..conditions import ConditionSpec
from ..data.columns import CONDITION, CONDITION_TEXT
from ..text_encoder import TextEncoder
from ..wording import argument
from .collect_runs import CollectedRows, ZooCollector
from .conditions import condition_labels
from .families import Subset, task_name
from .families_config import CLASSES, ROLES, TASKS, TasksConfig
from .populations import TrainExamples
from .splits import Split
from .task import Task

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


def task_sentence(sentence: str, names: Sequence[str]) -> str:
    """What says in words that a task is about classes: `Is it about cats, dogs or frogs?`."""
    listed = " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    return sentence.replace(CLASSES, listed)


class TasksCollector(ZooCollector):
    """Of many tasks. Run `r` is of the task `r mod T` of T, seen ones first, then validation, then unseen."""

    config: TasksConfig

    @cached_property
    def spec(self) -> ConditionSpec:
        """Conditions are the subsets, and with `collect.metric` numbers of the rows beside them; or sentences."""
        if self.config.condition == "sentence":
            return ConditionSpec("text", self._encoder.size, encoder=self.config.encoder)
        return self._with_metric(self._subsets)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.config.encoder)

    @cached_property
    def _subsets(self) -> ConditionSpec:
        return ConditionSpec.named("classes", self.task.class_names)

    @cached_property
    def tasks(self) -> tuple[Subset, ...]:
        """All, in the order of the runs."""
        return self.config.tasks.all

    @property
    def metadata(self) -> dict[str, Any]:
        """As [`Collector.metadata`]; raises `ValueError` where there is no encoder of the sentences."""
        _ = self.spec
        return super().metadata

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
                told = {"family": self.config.family, "split": self.config.split, "role": role, **numbers}
                subsets = [self._by_name[columns["task"][row]] for row in rows]
                if self.config.condition == "sentence":
                    # Of the embedding of a sentence, nobody could say which classes these are.
                    names = self.task.class_names
                    told |= {"classes": [*names], "subsets": {task_name(task, names): [*task] for task in dealt[role]}}
                given = rows, self._conditions(columns, rows, subsets), {TASKS: told}, self.spec
                found[config] = CollectedRows(*given)
        return found

    def _conditions(
        self, columns: Mapping[str, list], rows: Sequence[int], subsets: Sequence[Subset]
    ) -> dict[str, Any]:
        """The columns of the conditions of some rows, whose tasks are `subsets`."""
        if self.config.condition == "sentence":
            names = self.task.class_names
            sentences = [task_sentence(self.config.sentence, [names[place] for place in task]) for task in subsets]
            embeddings = dict(zip(known := sorted(set(sentences)), self._encoder(known), strict=True))
            return {
                CONDITION: torch.stack([embeddings[sentence] for sentence in sentences]),
                CONDITION_TEXT: sentences,
            }
        conditions = torch.tensor([self._subsets.values(task) for task in subsets])
        return {CONDITION: torch.cat([conditions, self._metric(columns, rows)], 1)}

    @cached_property
    def _by_name(self) -> dict[str, Subset]:
        return {task_name(task, self.task.class_names): task for task in self.tasks}

    def _labels(self, split: Split, tasks: Sequence[Subset]) -> torch.Tensor:
        conditions = torch.tensor([self._subsets.values(task) for task in tasks])
        return condition_labels(self.task.labels(split), self.task.class_names, self._subsets, conditions)
