"""The runs of a collection: from a base model to a parameter dataset of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from ..base_model import BaseModel
from ..data.record import ParameterRecorder
from ..data.writer import save_parameter_dataset
from ..layout import ParameterLayout
from ..wrapped import copy_network
from .config import BaseTrainingConfig, CollectConfig
from .task import Task
from .train_selection import SharedPrefix, share_prefix, train_selection
from .zoo import networks_at_once, train_networks


@dataclass(frozen=True)
class RunCollector:
    """Makes the rows of some runs of a collection; which ones are made together or before changes no row.

    Arguments are those of [`collect_checkpoints`], and the selected tensors.
    """

    task: Task
    base_model: BaseModel
    model: nn.Module
    base_training: BaseTrainingConfig
    config: CollectConfig
    layout: ParameterLayout
    seed: int

    @property
    def parts(self) -> list[range]:
        """The runs that are made together."""
        runs = self.config.runs
        size = networks_at_once(self.model) if self.config.independent else 1
        return [range(first, min(first + size, runs)) for first in range(0, runs, size)]

    def collect(self, runs: range, folder: Path, advance: Callable[[int], object]) -> None:
        """Write the rows of `runs`, one of `parts`, to a new folder, and report the number of new ones to `advance`.

        Raises:
            ValueError: a loss is no longer finite.
        """
        networks = self._base_models(runs)
        if self.config.takes_trained_networks:
            columns = {"run": [f"run-{run}" for run in runs], "seed": [self.seed + run for run in runs]}
            columns |= {"step": [0] * len(runs), "epoch": [0.0] * len(runs)}
            vectors = torch.stack([self.layout.flatten(network) for network in networks])
            save_parameter_dataset(vectors, self.layout, folder, columns=columns)
            advance(len(runs))
            return
        for run, network in zip(runs, networks, strict=True):
            seed, first_epoch = self._order(run)
            steps = train_selection(
                self.task, network, self.layout, self.config, seed, first_epoch, prefix=self._prefix
            )
            with ParameterRecorder(self.layout, folder, run=f"run-{run}", seed=seed) as recorder:
                for step, epoch, loss in steps:
                    recorder.record(network, step=step, epoch=epoch, loss=loss)
                    advance(1)

    def _base_models(self, runs: range) -> list[nn.Module]:
        """Where the runs start from: the base model, or from the second independent one on a model of its own."""
        device = next(self.model.parameters()).device
        networks, seeds = [], []
        for run in runs:
            if self.config.independent and run > 0:
                seeds.append(self.base_training.seed + run)
                set_seed(seeds[-1])
                untrained = replace(self.base_model, weights=None, sha256=None, repo=None, revision=None)
                networks.append(untrained.build())
            else:
                networks.append(copy_network(self.model))
        if seeds:
            train_networks(self.task, networks[-len(seeds) :], seeds, self.base_training, device)
        return networks

    def _order(self, run: int) -> tuple[int, int]:
        """Seed and first epoch of the order of a run's images."""
        return self.seed + run, self.base_training.epochs

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        """For the images of all runs, whichever of them are made here."""
        orders = map(self._order, range(self.config.runs))
        return share_prefix(self.task, self.model, self.layout, self.config, orders)
