"""Training of many independent networks, several at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.func import functional_call, vmap

from ..forward import forward_logits
from ..host_copy import to_device
from ..layout import ParameterLayout
from ..machine import free_memory
from .base_training import num_training_steps, train_steps
from .config import BaseTrainingConfig
from .examples import Examples
from .populations import TrainExamples
from .task import Task
from .train_selection import SharedPrefix

# On a CPU, more networks at once are no faster.
MAX_NETWORKS = 50
# There, parameters of all networks that are trained at once; larger ones keep it busy one at a time.
MAX_VALUES = 2**20
# Of all their inputs in a batch; activations take several times as much.
MAX_INPUT_BYTES = 2**28

# On an accelerator, AdamW alone takes longer for more parameters than the launches of a step (an estimate).
MAX_DEVICE_VALUES = 2**26
# Memory that is taken for granted there: of a parameter itself, gradient, AdamW and its step, and of a
# batch of inputs, activations and their gradients included. Where more is needed, networks are trained in halves.
BYTES_PER_VALUE = 32
INPUT_COPIES = 16

# Positions of examples that are drawn ahead.
ORDER_BYTES = 2**26

Keep = Callable[[Sequence[int], int, Mapping[str, torch.Tensor], list[float]], None]


class _Logits(nn.Module):
    """A network that returns a tensor whatever its library returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return forward_logits(self.model, images)


def networks_at_once(num_values: int, batch_bytes: int = 0, device: torch.device | None = None) -> int:
    """How many networks are trained together, of so many trained values and bytes of inputs in a batch each.

    On an accelerator, small networks as many as half of its free memory holds; on all CPUs the same number.
    """
    if device is not None and device.type != "cpu":
        num_bytes = BYTES_PER_VALUE * num_values + INPUT_COPIES * batch_bytes
        return max(1, min(MAX_DEVICE_VALUES // num_values, free_memory(device) // 2 // num_bytes))
    return max(1, min(MAX_NETWORKS, MAX_VALUES // num_values, MAX_INPUT_BYTES // max(1, batch_bytes)))


def train_networks(
    task: Task,
    network: nn.Module,
    starts: Sequence[Mapping[str, torch.Tensor]],
    seeds: Sequence[int],
    config: BaseTrainingConfig,
    keep: Keep,
    *,
    stops: Collection[int] | None = None,
    examples: Sequence[TrainExamples] | None = None,
    layout: ParameterLayout | None = None,
    prefix: SharedPrefix | None = None,
) -> None:
    """Trains networks of one architecture, each as [`train_base_model`] does with its own seed.

    Their tensors are stacked, and one AdamW over stacked tensors is an AdamW for each network: the results are those
    of training one after another but for rounding, and for what dropout draws. Networks that cannot be computed
    together (an operation without batching rule), and convolutions on a CPU, are trained one after another, and in
    halves those for which there is not enough memory.

    Args:
        task ([`Task`]): The examples.
        network (`nn.Module`): One of them, on the device where all are trained, in eval mode in the end.
        starts (`Sequence[Mapping]`): Of every network where it begins: all parameters and buffers by name, or those of
            `layout`, on any device.
        seeds (`Sequence[int]`): Of the order of every network's examples, in place of that of `config`.
        config ([`BaseTrainingConfig`]): Hyper-parameters.
        keep (`Callable`): Is called with the places of R networks that were trained together, the step, their tensors
            by name `(R, …)`, valid until it returns, and the losses of the step's batches.
        stops (`Collection[int]`, *optional*): Steps after which it is called for all networks; the last by default.
        examples (`Sequence[TrainExamples]`, *optional*): Of every network; all with their own labels by default.
        layout ([`ParameterLayout`], *optional*): The tensors that are trained, where the rest of `network` is fixed,
            see [`ParameterLayout.freeze_rest`].
        prefix ([`SharedPrefix`], *optional*): Of [`share_prefix`], for the fixed rest.

    Raises:
        ValueError: a loss is no longer finite.
    """
    examples = examples or [TrainExamples(task.labels("train"))] * len(starts)
    stops = {num_training_steps(task, config)} if stops is None else stops
    network.train() if layout is None else layout.freeze_rest(network)
    device = next(network.parameters()).device
    inputs = task.examples("train", device) if prefix is None else None

    def train(places: Sequence[int]) -> Sequence[Sequence[int]]:
        """Train some of them together; with nothing kept, gives the parts of those that cannot be computed so."""
        own = [examples[place] for place in places]
        tensors = {name: torch.stack([starts[place][name].detach() for place in places]) for name in starts[0]}
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name, parameter in network.named_parameters():
            if name in tensors:
                tensors[name].requires_grad_(parameter.requires_grad)
        losses_of = stacked_losses(network, tensors, prefix, config.mixed_precision == "bf16")
        batches = _Batches(task, inputs or prefix, [seeds[place] for place in places], own, config, device)
        set_seed(seeds[places[0]])
        training = train_steps(
            task, tensors.values(), lambda *batch: losses_of(*batches.take(*batch)), batches, config, device
        )
        steps_per_epoch = len(task.batch_indices("train", config.train_batch_size))
        for step in itertools.count(1):
            try:
                losses = next(training, None)
            except RuntimeError as error:
                if step > 1 or len(places) == 1:
                    raise
                # An operation without batching rule, but for a lack of memory.
                size = -(-len(places) // 2) if isinstance(error, torch.OutOfMemoryError) else 1
                return [places[start : start + size] for start in range(0, len(places), size)]
            if losses is None:
                return []
            if step not in stops and step % steps_per_epoch:
                continue
            for place, loss in zip(places, values := losses.tolist(), strict=True):
                if not math.isfinite(loss):
                    raise ValueError(
                        f"expected a finite loss, found {loss} at step {step} of the network with seed "
                        f"{seeds[place]}; lower base_training.learning_rate"
                    )
            if step in stops:
                keep(places, step, {name: tensor.detach() for name, tensor in tensors.items()}, values)

    # Without a common prefix, the fixed rest would be computed for every network at once.
    is_stackable = (layout is None or prefix is not None) and _is_faster_stacked(network, starts[0])
    places = range(len(starts))
    waiting = [places] if is_stackable else [[place] for place in places]
    while waiting:
        waiting = [*train(waiting[0]), *waiting[1:]]
    network.eval()


def _is_faster_stacked(network: nn.Module, start: Mapping[str, torch.Tensor]) -> bool:
    """Whether networks are trained faster together than one after another; convolutions are not on a CPU."""
    is_cpu = next(network.parameters()).device.type == "cpu"
    return not (is_cpu and any(tensor.ndim == 4 for tensor in start.values()))


def stacked_losses(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: SharedPrefix | None, is_half: bool = False
) -> Callable[[tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """The losses `(R,)` of R networks with stacked tensors, on stacked inputs `(R, B, …)` and labels `(R, B)`."""
    model = _Logits(network)

    def loss_of(own: Mapping[str, torch.Tensor], inputs: tuple[torch.Tensor, ...], labels: torch.Tensor):
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=is_half):
            if prefix is None:
                logits = functional_call(model, {f"model.{name}": tensor for name, tensor in own.items()}, inputs)
            else:
                logits = prefix.forward.tail(inputs, own)
        return nn.functional.cross_entropy(logits.float(), labels)

    if len(next(iter(tensors.values()))) > 1:
        return partial(vmap(loss_of, randomness="different"), tensors)

    def only_loss(inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        own = {name: tensor[0] for name, tensor in tensors.items()}
        return loss_of(own, tuple(tensor[0] for tensor in inputs), labels[0])[None]

    return only_loss


class _Batches:
    """Batches of R networks, without an end: positions `(R, B)`, and where inputs are not kept, inputs as stored."""

    def __init__(
        self,
        task: Task,
        source: Examples | SharedPrefix,
        seeds: Sequence[int],
        examples: Sequence[TrainExamples],
        config: BaseTrainingConfig,
        device: torch.device,
    ):
        self._task, self._source, self._device, self._batch_size = task, source, device, config.train_batch_size
        self._runs = list(zip(seeds, (own.positions for own in examples), strict=True))
        # Runs of a population share its labels.
        distinct = {id(own.labels): own.labels for own in examples}
        numbers = {key: number for number, key in enumerate(distinct)}
        self._labels = torch.stack([*distinct.values()]).to(device)
        self._rows = torch.tensor([numbers[id(own.labels)] for own in examples])[:, None].to(device)

    def take(self, index: torch.Tensor, *loaded: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Inputs `(R, B, …)` of a batch, of the tail where there is a prefix, and its labels `(R, B)`."""
        if isinstance(self._source, Examples):
            inputs = (self._source.inputs(index, *loaded),)
        else:
            inputs = tuple(tensor[self._source.rows[index]] for tensor in self._source.activations)
        return inputs, self._labels[self._rows, index]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        if isinstance(self._source, Examples) and not self._source.is_kept:
            runs = (itertools.chain.from_iterable(self._epochs(self._source.batches, *run)) for run in self._runs)
            for batches in zip(*runs, strict=True):
                yield tuple(map(torch.stack, zip(*batches, strict=True)))
        # A copy to the device of as many as there are in an epoch.
        num_steps = max(1, ORDER_BYTES // (8 * len(self._runs) * self._batch_size))
        num_steps = min(num_steps, len(self._task.batch_indices("train", self._batch_size)))
        for blocks in zip(*(self._blocks(num_steps, *run) for run in self._runs), strict=True):
            yield from ((index,) for index in to_device(torch.stack(blocks, 1), self._device))

    def _epochs(self, draw: Callable[..., Any], seed: int, positions: torch.Tensor | None) -> Iterator[Any]:
        return (draw(self._batch_size, seed, epoch, positions) for epoch in itertools.count())

    def _blocks(self, num_steps: int, seed: int, positions: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """Positions of a run `(num_steps, B)`, over the ends of its epochs."""
        rest = None
        for order in self._epochs(partial(self._task.batch_indices, "train"), seed, positions):
            rest = order if rest is None else torch.cat([rest, order])
            while len(rest) > num_steps:
                yield rest[:num_steps]
                rest = rest[num_steps:]
            if len(rest) == num_steps:
                yield rest
                rest = None
