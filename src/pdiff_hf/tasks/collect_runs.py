"""The runs of a collection: from a base model, or from a network of their own, to a parameter dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from ..data.record import ParameterRecorder
from ..data.writer import save_parameter_dataset
from ..layout import ParameterLayout
from ..wording import setting
from ..wrapped import copy_network, own_parameters
from .base_training import num_training_steps
from .config import BaseTrainingConfig, CollectConfig, CollectionConfig
from .examples import Examples
from .populations import TrainExamples, deal_populations, train_examples
from .runs_config import PopulationConfig, RunsConfig
from .task import Task
from .train_selection import SharedPrefix, share_prefix, train_selection
from .zoo import networks_at_once, train_networks


@dataclass(frozen=True)
class Collector(ABC):
    """Makes the rows of some runs of a collection; which ones are made before or by whom changes no row.

    Arguments are those of [`collect_checkpoints`], and the selected tensors.
    """

    task: Task
    build: Callable[[], nn.Module]
    model: nn.Module
    base_training: BaseTrainingConfig
    config: CollectionConfig
    layout: ParameterLayout
    seed: int

    @property
    def device(self) -> torch.device:
        """Where runs are trained."""
        return next(self.model.parameters()).device

    def runs_at_once(self, num_processes: int) -> int:
        """How many runs are made together; on accelerators, all that fit, shared by the processes."""
        if not self.is_stacked:
            return 1
        batch_bytes = self.base_training.train_batch_size * self.task.bytes_per_example
        number = networks_at_once(self.layout.num_parameters, batch_bytes, self.device)
        return number if self.device.type == "cpu" else min(number, -(-self.config.runs // num_processes))

    @property
    @abstractmethod
    def is_stacked(self) -> bool:
        """Whether several runs are made together."""

    @abstractmethod
    def collect(self, runs: range, folder: Path, advance: Callable[[int], object]) -> None:
        """Write the rows of `runs` to a new folder, and report the number of new ones to `advance`.

        Raises:
            ValueError: a loss is no longer finite.
        """


class RunCollector(Collector):
    """Of trainings that go on from a base model."""

    config: CollectConfig

    @property
    def is_stacked(self) -> bool:
        """Whether base models are trained together."""
        return self.config.independent

    def collect(self, runs: range, folder: Path, advance: Callable[[int], object]) -> None:
        """As [`Collector.collect`]."""
        for run, network in zip(runs, self._base_models(runs), strict=True):
            seed, first_epoch = self._order(run)
            steps = train_selection(
                self.task,
                network,
                self.layout,
                self.config,
                seed,
                first_epoch,
                prefix=self._prefix,
                examples=None if self._prefix else self._examples,
            )
            try:
                with ParameterRecorder(self.layout, folder, run=f"run-{run}", seed=seed) as recorder:
                    for step, epoch, loss in steps:
                        recorder.record(network, step=step, epoch=epoch, loss=loss)
                        advance(1)
            except ValueError as error:
                if loss.isfinite():
                    raise
                raise ValueError(
                    f"expected a finite loss, found {loss.item()} at step {step}; lower "
                    f"{setting('collect.learning_rate')}"
                ) from error

    def _base_models(self, runs: range) -> list[nn.Module]:
        """Where the runs start from: the base model, or from the second independent one on a model of its own."""
        networks = [copy_network(self.model) for run in runs if run == 0 or not self.config.independent]
        seeds = [self.base_training.seed + run for run in runs[len(networks) :]]
        if seeds:
            own = [build_with_seed(self.build, seed).to(self.device) for seed in seeds]

            def keep(places: Sequence[int], step: int, tensors: Mapping[str, torch.Tensor], losses: list) -> None:
                for row, place in enumerate(places):
                    own[place].load_state_dict({name: tensor[row] for name, tensor in tensors.items()}, strict=False)

            starts = [{**dict(network.named_parameters()), **dict(network.named_buffers())} for network in own]
            train_networks(self.task, copy_network(own[0]), starts, seeds, self.base_training, keep)
            networks += own
        return networks

    def _order(self, run: int) -> tuple[int, int]:
        """Seed and first epoch of the order of a run's images."""
        return self.seed + run, self.base_training.epochs

    @cached_property
    def _examples(self) -> Examples:
        """Those of every run."""
        return self.task.examples("train", self.device)

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        """For the images of all runs, whichever of them are made here."""
        orders = map(self._order, range(self.config.runs))
        return share_prefix(self.task, self.model, self.layout, self.config, orders)


class ZooCollector(Collector):
    """Of independent runs, each a network of its own from the first step on; the rest of `model` is that of all."""

    config: RunsConfig
    is_stacked = True

    @cached_property
    def populations(self) -> list[PopulationConfig | None]:
        """Of every run."""
        return deal_populations(self.config, self.seed)

    def collect(self, runs: range, folder: Path, advance: Callable[[int], object]) -> None:
        """As [`Collector.collect`]."""
        is_whole = is_whole_network(self.model, self.layout)
        dealt = [self.populations[run] for run in runs]
        wanted = [self._steps((population and population.at) or self.config.at) for population in dealt]
        num_batches = len(self.task.batch_indices("train", self.base_training.train_batch_size))
        rows: dict[tuple[int, int], tuple[torch.Tensor, dict]] = {}

        def keep(places: Sequence[int], step: int, tensors: Mapping[str, torch.Tensor], losses: list) -> None:
            # From an accelerator, one copy of all networks.
            stacked = torch.cat([tensors[name].reshape(len(places), -1) for name in self.layout.names], 1)
            for place, vector, loss in zip(places, stacked.float().cpu(), losses, strict=True):
                if step not in wanted[place]:
                    continue
                columns = {"run": f"run-{runs[place]}", "seed": seeds[place], "step": step}
                columns |= {"epoch": step / num_batches, "train_loss": loss}
                columns |= {"population": dealt[place].name} if dealt[place] else {}
                rows[place, step] = vector, columns
                advance(1)

        seeds = [self.base_training.seed + run for run in runs]
        train_networks(
            self.task,
            copy_network(self.model),
            [self._start(seed, is_whole) for seed in seeds],
            seeds,
            self.base_training,
            keep,
            stops=set().union(*wanted),
            examples=[self._examples[population and population.name] for population in dealt],
            layout=None if is_whole else self.layout,
            prefix=self._prefix,
        )
        vectors, found = zip(*(rows[key] for key in sorted(rows)), strict=True)
        columns = {name: [row[name] for row in found] for name in found[0]}
        save_parameter_dataset(torch.stack(vectors), self.layout, folder, columns=columns)

    def _steps(self, shares: Sequence[float]) -> set[int]:
        """The steps of these shares of the training."""
        num_steps = num_training_steps(self.task, self.base_training)
        steps = {max(1, round(share * num_steps)) for share in shares}
        if len(steps) < len(shares):
            raise ValueError(
                f"expected shares of {num_steps} steps that are different steps, found {list(shares)}; correct "
                "collect.at or raise base_training.epochs"
            )
        return steps

    def _start(self, seed: int, is_whole: bool) -> dict[str, torch.Tensor]:
        """Where a run begins: its own initialisation of what is trained."""
        network = build_with_seed(self.build, seed)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        names = tensors if is_whole else self.layout.names
        return {name: tensors[name].detach() for name in names}

    @cached_property
    def _examples(self) -> dict[str | None, TrainExamples]:
        """By the names of the populations."""
        return {
            population and population.name: train_examples(self.task, population, self.base_training.train_batch_size)
            for population in self.config.populations or [None]
        }

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        """Of all train examples: runs see nearly all of them."""
        return share_prefix(self.task, self.model, self.layout, self.base_training)


COLLECTORS = {CollectConfig: RunCollector, RunsConfig: ZooCollector}


def is_whole_network(model: nn.Module, layout: ParameterLayout) -> bool:
    """Whether a layout has all parameters of a network, which are then trained in train mode."""
    return own_parameters(model).keys() <= {*layout.names}


def build_with_seed(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with an initialisation of its own."""
    set_seed(seed)
    return build()
