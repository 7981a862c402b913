"""What the labels of a task give by training: for networks that are generated for it, how far and how dear that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ..adapters.network import add_adapter
from ..base_model import BaseModel
from ..builders import build_network
from ..data.dataset import ParameterDataset
from ..forward import forward_logits
from ..layout import ParameterLayout
from ..machine import default_device
from ..wrapped import copy_network
from .collect_runs import is_whole_network
from .conditions import condition_labels, row_subsets
from .config import BaseTrainingConfig
from .populations import TrainExamples
from .splits import Split
from .task import Task
from .train_selection import SharedPrefix, share_prefix
from .zoo import networks_at_once, stacked_losses, train_networks

BATCH_SIZE = 500
# Of a hypernetwork.
WIDTH, LEARNING_RATE = 256, 1e-3
TASKS_AT_ONCE, INPUTS_AT_ONCE = 16, 64


class TaskTraining:
    """Trains networks of a collection's architecture on tasks, as it trained its own.

    Args:
        dataset ([`ParameterDataset`]): The collection, which says how it was trained.
        task ([`Task`]): The examples.
        labels (`torch.Tensor` of shape `(T, N)`): Of all train examples, by task.
        start (`torch.Tensor` of shape `(D,)`): Where every network begins.
    """

    def __init__(self, dataset: ParameterDataset, task: Task, labels: torch.Tensor, start: torch.Tensor):
        self._task, self._labels, self._layout = task, labels, dataset.layout
        self._config = BaseTrainingConfig.model_validate(dataset.metadata["base_training"])
        network = dataset.base_model.build()
        dataset.layout.load_into(network, start)
        self._network = network.to(default_device())
        self._is_whole = is_whole_network(network, dataset.layout)

    @cached_property
    def seconds(self) -> float:
        """What one network of one task takes, alone, from the first step on."""
        self._prefix  # noqa: B018 - what all networks share is not part of it
        begin = time.perf_counter()
        self._train([0], self._config)
        return time.perf_counter() - begin

    def fine_tuned(self, seconds: float) -> tuple[torch.Tensor, float]:
        """Networks `(T, D)` that were trained for as long each, in whole epochs; and what one took.

        It is one epoch at least, and no more than the collection's own networks had.
        """
        epochs = max(1, round(min(1.0, seconds / self.seconds) * self._config.epochs))
        networks = self._train_all(self._config.model_copy(update={"epochs": epochs}))
        return networks, epochs / self._config.epochs * self.seconds

    def few_shot(self, shots: int, seed: int = 0) -> torch.Tensor:
        """Networks `(T, D)` trained on so many examples of every class, for as many steps as the collection's own."""
        classes, generator = self._task.labels("train"), torch.Generator().manual_seed(seed)
        order = torch.randperm(len(classes), generator=generator)
        own = [order[classes[order] == label][:shots] for label in classes.unique()]
        return self._train_all(self._config, torch.cat(own).sort().values)

    def hypernetwork(
        self, conditions: torch.Tensor, spread: torch.Tensor, steps: int, seed: int = 0
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """A perceptron from conditions `(n, C)` to networks `(n, D)`, trained on the labels of its tasks.

        It writes offsets from where all networks begin, in units of `spread` `(D,)`. No weights are its targets.

        Args:
            conditions (`torch.Tensor` of shape `(T, C)`): Of the tasks, 0 and 1.
            steps (`int`): Each of `TASKS_AT_ONCE` tasks with `INPUTS_AT_ONCE` examples; AdamW, cosine decay.
        """
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            writer = nn.Sequential(
                nn.Linear(conditions.shape[1], WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
                nn.Linear(WIDTH, len(spread)),
            )  # fmt: skip
            nn.init.zeros_(writer[-1].weight)
            nn.init.zeros_(writer[-1].bias)
        network = copy_network(self._network)
        device = next(network.parameters()).device
        start, spread = self._layout.flatten(network).to(device), spread.to(device)
        writer.to(device)

        def write(wanted: torch.Tensor) -> torch.Tensor:
            return start + spread * writer(2 * wanted.to(device).float() - 1)

        examples = None if self._prefix else self._task.examples("train", device)
        optimizer = torch.optim.AdamW(writer.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        network.eval().requires_grad_(False)
        for _ in range(steps):
            tasks = torch.randint(len(conditions), (TASKS_AT_ONCE,), generator=generator)
            index = torch.randint(self._labels.shape[1], (TASKS_AT_ONCE, INPUTS_AT_ONCE), generator=generator)
            labels = self._labels[tasks[:, None], index].to(device)
            if self._prefix is None:
                inputs = (torch.stack([examples.inputs(own.to(device)) for own in index]),)
            else:
                inputs = tuple(part[self._prefix.rows[index.to(device)]] for part in self._prefix.activations)
            tensors = self._layout.unflatten(write(conditions[tasks]))
            loss = stacked_losses(network, tensors, self._prefix)(inputs, labels).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        writer.requires_grad_(False)
        return lambda wanted: write(wanted).cpu()

    def _train_all(self, config: BaseTrainingConfig, positions: torch.Tensor | None = None) -> torch.Tensor:
        examples = self._task.arrays("train")[0][:1]
        size = networks_at_once(
            sum(tensor.numel() for tensor in self._start.values()),
            examples.nbytes * config.train_batch_size,
            next(self._network.parameters()).device,
        )
        parts = torch.arange(len(self._labels)).split(size)
        return torch.cat([self._train(part.tolist(), config, positions) for part in parts])

    def _train(
        self, tasks: Sequence[int], config: BaseTrainingConfig, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}

        def keep(places: Sequence[int], step: int, tensors: Mapping[str, torch.Tensor], losses: list) -> None:
            stacked = torch.cat([tensors[name].reshape(len(places), -1) for name in self._layout.names], 1)
            found.update(zip(places, stacked.float().cpu(), strict=True))

        examples = TrainExamples(self._labels[0], positions)
        train_networks(
            self._task,
            copy_network(self._network),
            [self._start] * len(tasks),
            [config.seed] * len(tasks),
            config,
            keep,
            examples=[replace(examples, labels=self._labels[task]) for task in tasks],
            layout=None if self._is_whole else self._layout,
            prefix=self._prefix,
        )
        return torch.stack([found[place] for place in range(len(tasks))])

    @cached_property
    def _start(self) -> dict[str, torch.Tensor]:
        tensors = {**dict(self._network.named_parameters()), **dict(self._network.named_buffers())}
        return {name: tensors[name].detach() for name in (tensors if self._is_whole else self._layout.names)}

    @cached_property
    def _prefix(self) -> SharedPrefix | None:
        return share_prefix(self._task, self._network, self._layout, self._config)


def class_probabilities(dataset: ParameterDataset, task: Task, split: Split) -> torch.Tensor | None:
    """What one network for all classes says of the examples of a split `(N, C)`, trained as the collection's own.

    It is the collection's architecture with C outputs, its fixed rest the same. `None` where nobody knows how to build
    that: its reference has no `num_classes`.
    """
    base_model = dataset.base_model
    given = _with_classes(base_model, task.num_classes)
    if given is None:
        return None
    config = BaseTrainingConfig.model_validate(dataset.metadata["base_training"])
    set_seed(config.seed)
    network = build_network(
        base_model.library, base_model.name, given, pretrained=False, trusted_imports=base_model.trusted_imports
    )
    if base_model.adapter is not None:
        network = add_adapter(network, base_model.adapter)
    fixed, own = base_model.build().state_dict(), network.state_dict()
    selected = {*dataset.layout.names}
    same = {name: tensor for name, tensor in fixed.items() if name not in selected and tensor.shape == own[name].shape}
    network.load_state_dict({**own, **same})
    layout = ParameterLayout.from_model(network, select=dataset.metadata["collect"]["select"])
    network.to(default_device())
    is_whole = is_whole_network(network, layout)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    start = {name: tensors[name].detach().clone() for name in (tensors if is_whole else layout.names)}
    trained: dict[str, torch.Tensor] = {}

    def keep(places: Sequence[int], step: int, found: Mapping[str, torch.Tensor], losses: list) -> None:
        trained.update({name: tensor[0].clone() for name, tensor in found.items()})

    options = {"layout": None if is_whole else layout, "prefix": share_prefix(task, network, layout, config)}
    train_networks(task, copy_network(network), [start], [config.seed], config, keep, **options)
    network.load_state_dict(trained, strict=False)
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        batches = task.arrays(split)[0].split(BATCH_SIZE)
        return torch.cat([forward_logits(network, batch.to(device)).float().softmax(-1).cpu() for batch in batches])


def _with_classes(base_model: BaseModel, num_classes: int) -> dict[str, Any] | None:
    """Arguments of a network with other classes; `None` where it does not say how many it has."""
    if "num_classes" in base_model.kwargs:
        return {**base_model.kwargs, "num_classes": num_classes}
    config = base_model.kwargs.get("config")
    if base_model.library != "transformers" or not {"num_labels", "id2label"} & config.keys():
        return None
    kept = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return {"config": {**kept, "num_labels": num_classes}}


def multi_task_accuracies(
    dataset: ParameterDataset, task: Task, conditions: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor | None:
    """Accuracies `(T,)` of [`class_probabilities`] on test examples: yes where those of the subset are half or more.

    Args:
        conditions (`torch.Tensor` of shape `(T, size)`): Of the tasks.
        targets (`torch.Tensor` of shape `(T, N)`): Their labels of the test examples.
    """
    found = class_probabilities(dataset, task, "test")
    if found is None:
        return None
    classes = torch.arange(task.num_classes)
    members = condition_labels(classes, task.class_names, row_subsets(dataset)[0], conditions)
    answers = found.double() @ members.double().T >= 0.5
    return (answers.T == targets.bool()).double().mean(1)
