"""The kinds of the section `collect` of a recipe, and that of independent runs with what its populations say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, StrictInt, field_validator, model_validator

from ..sections import OneOf, by_kind
from .config import CollectConfig, CollectionConfig, Share, ZooConfig
from .families_config import TASKS, TasksConfig


class PopulationConfig(PydanticModel):
    """One of `collect.populations`: what its runs are trained on, where that is not all train examples as they are."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    relabel: StrictInt | list[StrictInt] | None = Field(
        None, description="the label of every class in place of its own, or a seed of a random permutation"
    )
    classes: list[StrictInt] | None = Field(None, description="numbers of the only classes it is trained on")
    train_size: int | None = Field(None, ge=1, description="train examples, the same for all its runs; null: all")
    label_noise: float = Field(0.0, ge=0, le=1, description="share of the train examples with a random label")
    at: list[Share] | None = Field(None, min_length=1, description="in place of `collect.at`")
    seed: int = Field(0, ge=0, description="of `train_size` and `label_noise`")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        known = list(cls.model_fields)
        if isinstance(values, Mapping) and (unknown := [str(key) for key in values if key not in known]):
            near = difflib.get_close_matches(unknown[0], known, 1, 0.0)[0]
            raise ValueError(f"unknown key {unknown[0]!r}; the nearest valid one is {near!r}")
        return values

    @field_validator("relabel")
    @classmethod
    def _check_relabel(cls, relabel: int | list[int] | None) -> int | list[int] | None:
        if isinstance(relabel, int) and relabel < 0:
            raise ValueError(f"expected a seed of 0 or more, found {relabel}; correct relabel")
        if isinstance(relabel, list) and sorted(relabel) != list(range(len(relabel))):
            raise ValueError(
                f"expected every label from 0 to {len(relabel) - 1} once, found {relabel}; correct relabel, or give "
                "the seed of a random permutation"
            )
        return relabel

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[int] | None) -> list[int] | None:
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError(f"expected two or more different classes, found {classes}; correct classes")
        return classes


class RunsConfig(ZooConfig):
    """Independent runs, each with its own initialisation and order of the examples, trained as `base_training` says.

    Run `r` has the seed `base_training.seed + r`.
    """

    kind: Literal["runs"] = "runs"
    runs: int = Field(ge=2)
    populations: list[PopulationConfig] = Field([], description="dealt to the runs in turn, every round shuffled anew")

    @field_validator("populations")
    @classmethod
    def _check_populations(cls, populations: list[PopulationConfig]) -> list[PopulationConfig]:
        names = [population.name for population in populations]
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError(f"expected two or more populations of different names, found {names}")
        return populations

    @model_validator(mode="after")
    def _check_rows(self) -> RunsConfig:
        numbers = {len(population.at or self.at) for population in self.populations}
        if len(numbers) > 1:
            raise ValueError(
                f"expected as many rows of every run, found {sorted(numbers)}; give every population's at as many "
                "shares"
            )
        if len(self.populations) > self.runs:
            raise ValueError(
                f"expected a run or more of each of {len(self.populations)} populations, found runs={self.runs}; "
                "raise collect.runs"
            )
        return self

    @property
    def rows_per_run(self) -> int:
        """Checkpoints of every run."""
        return (
            max(len(population.at or self.at) for population in self.populations) if self.populations else len(self.at)
        )


COLLECT = OneOf(by_kind(CollectConfig, RunsConfig, TasksConfig), "trajectory")

CollectSection = Annotated[CollectionConfig, COLLECT]
"""The recipe's `collect` section: one of the kinds, by its key `kind`."""


def from_version_0_1(values: Any) -> Any:
    """A `collect` section as it is written now.

    Before there were kinds, `independent: true` with `num_checkpoints: 1` said that every run is trained as
    `base_training` says and has one row; whatever else it said of training was without effect.
    """
    if not isinstance(values, Mapping) or "kind" in values:
        return values
    if values.get("independent") is not True or values.get("num_checkpoints") != 1:
        return values
    kept = [*RunsConfig.model_fields, "align"]
    return {"kind": "runs", **{key: value for key, value in values.items() if key in kept}}


def recorded_collection(metadata: Mapping[str, Any]) -> CollectionConfig | None:
    """How the rows of a parameter dataset were collected, by its metadata; `None` where no recipe did it."""
    if metadata.get("collect") is None:
        return None
    # In which order version 0.1 put hidden units is of no concern.
    known = {key: value for key, value in metadata["collect"].items() if key != "align"}
    return COLLECT.validate(from_version_0_1(known))


def begins_at_base(metadata: Mapping[str, Any]) -> bool:
    """Whether all trainings of a parameter dataset began at its base model, as far as its metadata tells."""
    collect = recorded_collection(metadata)
    return isinstance(collect, CollectConfig) and not (collect.independent and collect.runs > 1)


def fine_tuning_config(metadata: Mapping[str, Any]) -> CollectConfig | None:
    """How a network of a parameter dataset is trained on, as it was trained, by the dataset's metadata.

    `None` where it is not known, or where labels depend on the network's population or task.
    """
    collect = recorded_collection(metadata)
    if collect is None or metadata.keys() & {"populations", TASKS}:
        return None
    if isinstance(collect, CollectConfig):
        return collect
    known = {key: metadata["base_training"][key] for key in ("learning_rate", "weight_decay", "train_batch_size")}
    return CollectConfig(select=collect.select, buffers=collect.buffers, **known)
