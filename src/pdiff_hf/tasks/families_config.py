"""The section `collect` of `kind: tasks`: networks of many tasks on the same examples, and which tasks are seen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .config import ZooConfig
from .families import Split, TaskSplit, split_tasks

# In the metadata of a parameter dataset: of which family the tasks of its rows are, and which role they have.
TASKS = "tasks"
# By role of the tasks, the config of the dataset: what generators are trained on has no other name.
ROLES = {"seen": "", "validation": "validation", "unseen": "unseen"}
# Of a sentence, the place of its classes.
CLASSES = "{classes}"


class TasksConfig(ZooConfig):
    """A network or several of every task of a family, trained as `base_training` says, by the labels of its task.

    Rows of seen tasks are the parameter dataset; those of validation and unseen tasks, with which generated networks
    are compared, are datasets of their own in its folders `validation` and `unseen`.
    """

    kind: Literal["tasks"] = "tasks"
    family: Literal["class_subsets"] = Field(
        "class_subsets", description="a task is a subset of the classes; the network says whether it is one of these"
    )
    num_classes: int = Field(ge=3, description="of the data set: `${num_classes}`")
    split: Split = Field(
        "groups",
        description="which tasks are seen. groups: a subset and its complement, the same task with flipped labels, "
        "are on one side; leaky: RPG's twenty of ten classes are unseen, their complements seen; compositional: "
        "subsets of up to `largest_seen` classes are seen",
    )
    seen: int | None = Field(
        None, ge=1, description="groups (tasks, where the split is not by groups); null: all that are left"
    )
    validation: int = Field(0, ge=0, description="groups (tasks), as `seen`, that what is compared is chosen by")
    unseen: int = Field(0, ge=0, description="groups; of compositional tasks, 0 for all")
    largest_seen: int = Field(3, ge=1, description="of compositional")
    seed: int = Field(0, ge=0, description="of the split")
    condition: Literal["classes", "sentence"] = Field(
        "classes", description="what generators are told of a task: its subset, or a sentence that names its classes"
    )
    sentence: str = Field(
        "Is it about {classes}?", description="of `condition: sentence`; `{classes}` becomes `cats, dogs or frogs`"
    )
    encoder: str | None = Field(
        None, description="of sentences: a folder, `user/name` on the Hub, or `package:NAME/path` of a package"
    )
    runs_per_task: int = Field(1, ge=1)
    same_start: bool = Field(
        True,
        description="one initialisation for all runs, and one order of the examples for the first run of all tasks, "
        "one for the second, …; else every run has its own of both",
    )

    @model_validator(mode="after")
    def _check_condition(self) -> TasksConfig:
        if self.condition == "classes":
            return self
        if self.encoder is None:
            raise ValueError("expected the encoder of sentences, found none; set collect.encoder")
        if self.sentence.count(CLASSES) != 1:
            raise ValueError(
                f"expected {CLASSES} once in the sentence of a task, found {self.sentence!r:.200}; correct "
                "collect.sentence"
            )
        if self.metric:
            raise ValueError(
                "expected sentences alone, which are no part of other conditions, found collect.metric; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> TasksConfig:
        _ = self.tasks
        return self

    @property
    def tasks(self) -> TaskSplit:
        """The tasks by their role."""
        numbers = (self.seen, self.validation, self.unseen, self.largest_seen, self.seed)
        return split_tasks(self.num_classes, self.split, *numbers)

    @property
    def runs(self) -> int:
        """Networks of all tasks."""
        return len(self.tasks.all) * self.runs_per_task

    @property
    def rows_per_run(self) -> int:
        """Checkpoints of every run."""
        return len(self.at)

    @property
    def num_rows(self) -> int:
        """Networks of the tasks seen."""
        return len(self.tasks.seen) * self.runs_per_task * self.rows_per_run
