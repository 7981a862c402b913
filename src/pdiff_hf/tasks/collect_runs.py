"""The runs of a collection: from a base model, or from a network of their own, to a parameter dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ..conditions import ConditionSpec
from ..data.record import ParameterRecorder
from ..data.writer import save_parameter_dataset
from ..layout import ParameterLayout
from ..wording import setting
from ..wrapped import copy_network, own_parameters
from .base_training import num_training_steps
from .config import BaseTrainingConfig, CollectConfig, CollectionConfig, ZooConfig
from .examples import Examples
from .populations import TrainExamples, deal_populations, describe_populations, population_labels, train_examples
from .runs_config import PopulationConfig, RunsConfig
from .splits import Split
from .task import Task
from .train_selection import SharedPrefix, share_prefix, train_selection
from .zoo import networks_at_once, train_networks


@dataclass(frozen=True)
class CollectedRows:
    """Rows of a collection that are a dataset together, and what they have beside columns and metadata of all."""

    rows: list[int]
    columns: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    conditions: ConditionSpec | None = None


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

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of the runs beside the sections of the recipe, as JSON."""
        return {}

    def labels(self, split: Split, columns: Mapping[str, list]) -> torch.Tensor:
        """Labels `(K, N)` of a split by which rows with these columns are judged, -1 where one has none."""
        return self.task.labels(split).expand(len(columns["run"]), -1)

    def datasets(self, columns: Mapping[str, list]) -> dict[str, CollectedRows]:
        """Which rows are in which dataset, by its config; that of generators is `""`."""
        return {"": CollectedRows(list(range(len(columns["run"]))))}

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

    config: ZooConfig
    is_stacked = True

    @abstractmethod
    def shares(self, run: int) -> Sequence[float]:
        """After which shares of its training a run has a row each."""

    @abstractmethod
    def seeds(self, run: int) -> tuple[int, int]:
        """Of a run's initialisation, and of the order of its examples."""

    @abstractmethod
    def examples(self, run: int) -> TrainExamples:
        """What a run is trained on."""

    @abstractmethod
    def columns(self, run: int) -> dict[str, str]:
        """What its rows have beside what every row has."""

    def collect(self, runs: range, folder: Path, advance: Callable[[int], object]) -> None:
        """As [`Collector.collect`]."""
        wanted = [self._steps(self.shares(run)) for run in runs]
        starts, orders = zip(*map(self.seeds, runs), strict=True)
        num_batches = len(self.task.batch_indices("train", self.base_training.train_batch_size))
        rows: dict[tuple[int, int], tuple[torch.Tensor, dict]] = {}

        def keep(places: Sequence[int], step: int, tensors: Mapping[str, torch.Tensor], losses: list) -> None:
            # From an accelerator, one copy of all networks.
            stacked = torch.cat([tensors[name].reshape(len(places), -1) for name in self.layout.names], 1)
            for place, vector, loss in zip(places, stacked.float().cpu(), losses, strict=True):
                if step not in wanted[place]:
                    continue
                columns = {"run": f"run-{runs[place]}", "seed": orders[place], "step": step}
                columns |= {"epoch": step / num_batches, "train_loss": loss, **self.columns(runs[place])}
                rows[place, step] = vector, columns
                advance(1)

        begun = {seed: self._start(seed) for seed in set(starts)}
        train_networks(
            self.task,
            copy_network(self.model),
            [begun[seed] for seed in starts],
            orders,
            self.base_training,
            keep,
            stops=set().union(*wanted),
            examples=[self.examples(run) for run in runs],
            layout=None if self._is_whole else self.layout,
            prefix=self._prefix,
        )
        vectors, found = zip(*(rows[key] for key in sorted(rows)), strict=True)
        columns = {name: [row[name] for row in found] for name in found[0]}
        save_parameter_dataset(torch.stack(vectors), self.layout, folder, columns=columns)

    def _metric(self, columns: Mapping[str, list], rows: Sequence[int]) -> torch.Tensor:
        """Of some rows the numbers of `collect.metric` `(n, m)`."""
        return torch.tensor([[float(columns[name][row]) for name in self.config.metric] for row in rows])

    def _with_metric(self, spec: ConditionSpec | None = None) -> ConditionSpec | None:
        """Conditions of `spec`, if any, and of `collect.metric`, if any."""
        if not self.config.metric:
            return spec
        metric = ConditionSpec.named("metric", self.config.metric)
        return metric if spec is None else ConditionSpec.composed(spec, metric)

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

    def _start(self, seed: int) -> dict[str, torch.Tensor]:
        """Where a run begins: an initialisation of what is trained."""
        network = build_with_seed(self.build, seed)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        names = tensors if self._is_whole else self.layout.names
        return {name: tensors[name].detach() for name in names}

    @property
    def _is_whole(self) -> bool:
        return is_whole_network(self.model, self.layout)

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        """Of all train examples: runs see nearly all of them."""
        return share_prefix(self.task, self.model, self.layout, self.base_training)


class RunsCollector(ZooCollector):
    """Of one task, or of populations with labels of their own."""

    config: RunsConfig

    @cached_property
    def populations(self) -> list[PopulationConfig | None]:
        """Of every run."""
        return deal_populations(self.config, self.seed)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the populations are."""
        if not self.config.populations:
            return {}
        return {"populations": describe_populations(self.config, self.task.num_classes)}

    def shares(self, run: int) -> Sequence[float]:
        """As [`ZooCollector.shares`]."""
        population = self.populations[run]
        return (population and population.at) or self.config.at

    def seeds(self, run: int) -> tuple[int, int]:
        """As [`ZooCollector.seeds`]."""
        seed = self.base_training.seed + run
        return seed, seed

    def examples(self, run: int) -> TrainExamples:
        """As [`ZooCollector.examples`]."""
        population = self.populations[run]
        return self._examples[population and population.name]

    def columns(self, run: int) -> dict[str, str]:
        """The run's population, where there are several."""
        population = self.populations[run]
        return {"population": population.name} if population else {}

    def datasets(self, columns: Mapping[str, list]) -> dict[str, CollectedRows]:
        """As [`Collector.datasets`], with conditions where `collect.metric` says which."""
        rows = list(range(len(columns["run"])))
        if not self.config.metric:
            return {"": CollectedRows(rows)}
        condition = {"condition": self._metric(columns, rows)}
        return {"": CollectedRows(rows, condition, conditions=self._with_metric())}

    def labels(self, split: Split, columns: Mapping[str, list]) -> torch.Tensor:
        """Those of every row's population."""
        if "population" not in columns:
            return super().labels(split, columns)
        known = population_labels(self.task, self.metadata, split)
        return torch.stack([known[name] for name in columns["population"]])

    @cached_property
    def _examples(self) -> dict[str | None, TrainExamples]:
        """By the names of the populations."""
        return {
            population and population.name: train_examples(self.task, population, self.base_training.train_batch_size)
            for population in self.config.populations or [None]
        }


def is_whole_network(model: nn.Module, layout: ParameterLayout) -> bool:
    """Whether a layout has all parameters of a network, which are then trained in train mode."""
    return own_parameters(model).keys() <= {*layout.names}


def build_with_seed(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with an initialisation of its own."""
    set_seed(seed)
    return build()
