"""Several populations in one collection of independent runs: what each is trained on, and labels to judge it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .runs_config import PopulationConfig, RunsConfig
from .splits import Split, stratified_choice
from .task import Task


@dataclass(frozen=True)
class TrainExamples:
    """What a run is trained on.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): Of all train examples; -1 where it has none.
        positions (`torch.Tensor` of shape `(n,)`, *optional*): Of its own among them; all by default.
    """

    labels: torch.Tensor
    positions: torch.Tensor | None = None


def describe_populations(config: RunsConfig, num_classes: int) -> dict[str, dict[str, Any]]:
    """By name what a population is, as JSON: its section, and `labels`, that of every class, -1 for one it lacks.

    Raises:
        ValueError: a class is none of the task, or there is not one new label for every class.
    """
    return {
        population.name: {**population.model_dump(mode="json"), "labels": _class_labels(population, num_classes)}
        for population in config.populations
    }


def _class_labels(population: PopulationConfig, num_classes: int) -> list[int]:
    relabel, classes = population.relabel, population.classes
    if isinstance(relabel, list) and len(relabel) != num_classes:
        raise ValueError(
            f"expected a label for each of {num_classes} classes, found {len(relabel)} in population "
            f"{population.name!r}; correct relabel in collect.populations"
        )
    if wrong := [number for number in classes or () if not 0 <= number < num_classes]:
        raise ValueError(
            f"expected classes from 0 to {num_classes - 1}, found {wrong[0]} in population {population.name!r}; "
            "correct classes in collect.populations"
        )
    if isinstance(relabel, int):
        relabel = np.random.default_rng(relabel).permutation(num_classes).tolist()
    labels = list(range(num_classes)) if relabel is None else relabel
    return [label if classes is None or number in classes else -1 for number, label in enumerate(labels)]


def deal_populations(config: RunsConfig, seed: int) -> list[PopulationConfig | None]:
    """The population of every run: dealt in turn, in an order that is drawn anew for every round.

    So there are as many runs of each, but for one, and none has every n-th run, which may be held out. More runs
    change nothing for the first ones.
    """
    number = len(config.populations)
    if not number:
        return [None] * config.runs
    rounds = range(-(-config.runs // number))
    dealt = [place for turn in rounds for place in np.random.default_rng([seed, turn]).permutation(number)]
    return [config.populations[place] for place in dealt[: config.runs]]


def train_examples(task: Task, population: PopulationConfig | None, batch_size: int) -> TrainExamples:
    """What the runs of a population are trained on.

    Raises:
        ValueError: there are not enough examples for its `train_size`, or for a batch.
    """
    labels = task.labels("train")
    if population is None:
        return TrainExamples(labels)
    labels = torch.tensor(_class_labels(population, task.num_classes))[labels]
    positions = (labels >= 0).nonzero()[:, 0].numpy()
    if population.train_size not in (None, len(positions)):
        key = f"train_size of population {population.name!r} in collect.populations"
        positions, _ = stratified_choice(positions, labels.numpy(), population.train_size, population.seed, key)
    if len(positions) < batch_size:
        raise ValueError(
            f"expected a batch of {batch_size} or more train examples, found {len(positions)} of population "
            f"{population.name!r}; raise its train_size, or lower base_training.train_batch_size"
        )
    if population.label_noise:
        generator = np.random.default_rng(population.seed)
        noisy = positions[generator.random(len(positions)) < population.label_noise]
        known = np.unique(labels[positions].numpy())
        labels[noisy] = torch.from_numpy(generator.choice(known, len(noisy)))
    return TrainExamples(labels, torch.from_numpy(positions))


def population_labels(task: Task, metadata: Mapping[str, Any], split: Split) -> dict[str, torch.Tensor]:
    """Labels of a split as every population of a parameter dataset has them.

    Args:
        task ([`Task`]): That of the dataset.
        metadata (`Mapping[str, Any]`): [`ParameterDataset.metadata`].
        split (`str`): `"train"`, `"val"` or `"test"`.

    Returns:
        `dict[str, torch.Tensor]`: by name `(N,)` int64, -1 for examples that the population does not have; empty for
        a dataset without populations.
    """
    labels = task.labels(split)
    return {
        name: torch.tensor(population["labels"])[labels]
        for name, population in metadata.get("populations", {}).items()
    }


def accuracies(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Fractions `(K,)` of right predictions `(K, N)` by labels `(K, N)`, without those of which the label is -1."""
    known = labels >= 0
    return ((predictions == labels) & known).sum(1) / known.sum(1)
