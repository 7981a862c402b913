"""Training of a network's selected tensors, checkpoint by checkpoint, everything else fixed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..base_model import BaseModel
from ..forward import FullForward, SplitForward, forward_logits, split_if_exportable
from ..graphs import graphed, takes_graphs
from ..host_copy import to_device
from ..layout import ParameterLayout
from ..machine import ThreadChoice, default_device, precision_of
from ..wording import setting
from ..wrapped import own_parameters
from .config import SUBSET_LEARNING_RATE, WHOLE_LEARNING_RATE, BaseTrainingConfig, CollectConfig
from .examples import Examples
from .task import Task, cache_bytes

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


@dataclass(frozen=True)
class SharedPrefix:
    """Activations of train images where the selected tensors come in, the same in all steps of a training."""

    forward: SplitForward
    # Of n images each, with their labels (n,).
    activations: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    # Of every train image its place among the n, -1 without one, (N,); on the device, as all of these.
    rows: torch.Tensor

    def logits(self, index: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, classes)` and labels `(B,)` of the train images at positions `index` `(B,)` on the device."""
        rows = self.rows[index]
        return self.forward.tail(tuple(a[rows] for a in self.activations), tensors), self.labels[rows]


@torch.no_grad()
def share_prefix(
    task: Task,
    network: nn.Module,
    layout: ParameterLayout,
    config: CollectConfig | BaseTrainingConfig,
    orders: Iterable[tuple[int, int]] | None = None,
) -> SharedPrefix | None:
    """Compute once what does not change while a selection of a network is trained, on the network's device.

    Of runs with the seeds and first epochs `orders`, only the images that they come to see are computed, else all.

    Returns:
        [`SharedPrefix`], or `None` where everything changes: when all parameters are trained, norm layers follow the
        data or images are augmented; also when the network cannot be cut or the activations need too much memory.
    """
    parameters = own_parameters(network)
    device, is_whole = next(iter(parameters.values())).device, all(name in layout.names for name in parameters)
    if is_whole or layout.followed_modules or task.is_augmented:
        return None
    examples = task.examples("train", device)
    if not examples.is_kept:
        return None
    labels = examples.labels
    batch_size = min(config.train_batch_size, len(labels))
    full = FullForward(network, device)
    first_inputs = examples.inputs(torch.arange(batch_size, device=device))
    forward = split_if_exportable(full, first_inputs, layout.names, "step")
    if forward is full:
        return None

    # 1. The images that will be seen
    needed = torch.ones(len(labels), dtype=torch.bool)
    if orders is not None:
        needed[:] = False
        for seed, first_epoch in orders:
            batches = (
                index
                for epoch in itertools.count(first_epoch)
                for index in task.batch_indices("train", config.train_batch_size, seed, epoch)
            )
            for index in itertools.islice(batches, config.num_steps):
                needed[index] = True
    positions = needed.nonzero()[:, 0]
    rows = torch.full((len(labels),), -1)
    rows[positions] = torch.arange(len(positions))
    positions, rows = positions.to(device), rows.to(device)

    # 2. Their activations
    batches, limit = [], cache_bytes(device)
    for start in range(0, len(positions), batch_size):
        # The exported graph knows one batch size only, so the last batch overlaps the one before.
        first = min(start, len(positions) - batch_size)
        activations = forward.prefix(examples.inputs(positions[first : first + batch_size]))
        num_bytes = sum(tensor.nbytes for tensor in activations) * len(positions) / batch_size
        if num_bytes > limit or any(len(tensor) != batch_size for tensor in activations):
            return None
        batches.append([tensor[start - first :] for tensor in activations])
    activations = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    return SharedPrefix(forward, activations, labels[positions], rows)


def train_selection(
    task: Task,
    network: nn.Module,
    layout: ParameterLayout,
    config: CollectConfig,
    seed: int = 0,
    first_epoch: int = 0,
    schedule: Callable[[int], float] | None = None,
    prefix: SharedPrefix | None = None,
    examples: Examples | None = None,
) -> Iterator[tuple[int, float, torch.Tensor]]:
    """Trains the tensors of a layout in place, everything else fixed, and stops at every checkpoint.

    The network is in eval mode, except for norm layers whose running statistics are in the layout: what is not
    collected must not change, dropout and the statistics of frozen layers included. (The authors' code trains in train
    mode and so changes running statistics that it does not save.)

    Args:
        task ([`Task`]), network (`nn.Module`), layout ([`ParameterLayout`]), config ([`CollectConfig`]): What is
            trained, and how.
        seed (`int`, *optional*, defaults to 0): Of the order of the images.
        first_epoch (`int`, *optional*, defaults to 0): Epochs that came before, so that the order is a new one.
        schedule (`Callable`, *optional*): Factor of the learning rate by step; that of the config by default.
        prefix ([`SharedPrefix`], *optional*): Of [`share_prefix`], for this network's frozen tensors; every step is a
            full forward by default.
        examples ([`Examples`], *optional*): The train examples on this network's device, for several runs.

    Yields:
        `tuple[int, float, torch.Tensor]`: steps done, epochs done, and the loss `()` of the last batch before its
        step; on an accelerator, nothing has waited for it.

    Raises:
        ValueError: no selected tensor is a parameter.
    """
    # 1. What is trained, and which norm layers follow the data
    parameters = own_parameters(network)
    trained = {name: parameter for name, parameter in parameters.items() if name in layout.names}
    if not trained:
        raise ValueError(f"expected a selection with parameters, found buffers only: {layout.names}; select others")
    layout.freeze_rest(network)
    learning_rate = config.learning_rate or (
        WHOLE_LEARNING_RATE if len(trained) == len(parameters) else SUBSET_LEARNING_RATE
    )
    # Steps are smaller than half precision is fine: they add up in float32.
    masters = {name: p if p.dtype == torch.float32 else p.detach().float().clone() for name, p in trained.items()}
    halves = [(p, masters[name]) for name, p in trained.items() if masters[name] is not p]
    device = next(iter(trained.values())).device
    options = {"lr": learning_rate, "weight_decay": config.weight_decay, "fused": takes_graphs(device) or None}
    optimizer = OPTIMIZERS[config.optimizer](masters.values(), **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule or config.learning_rate_factor)
    if prefix is None and examples is None:
        examples = task.examples("train", device)

    def update(index: torch.Tensor, *loaded: torch.Tensor) -> tuple[torch.Tensor]:
        if prefix is None:
            logits, labels = forward_logits(network, examples.inputs(index, *loaded)), examples.labels[index]
        else:
            logits, labels = prefix.logits(index, trained)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for half, master in halves:
            master.grad, half.grad = None if half.grad is None else half.grad.float(), None
        optimizer.step()
        for half, master in halves:
            half.data.copy_(master)
        return (loss.detach(),)

    # SGD has no way to be told its learning rate in a graph.
    advance = update if config.optimizer == "sgd" else graphed(update, optimizer)

    # 2. Steps
    step, num_steps, threads = 0, config.num_steps, ThreadChoice(device)
    for epoch in itertools.count():
        order = (config.train_batch_size, seed, first_epoch + epoch)
        indices = task.batch_indices("train", *order)
        if prefix is None:
            batches = examples.batches(*order)
        else:
            batches = ((index,) for index in to_device(indices, device))
        for batch in batches:
            with threads.step(), precision_of("training"):
                (loss,) = advance(*batch)
                scheduler.step()
            step += 1
            if not config.is_kept(step):
                continue
            # A graph writes later ones to the same place.
            yield step, step / len(indices), loss.clone()
            if step == num_steps:
                return


def fine_tune(
    task: Task,
    base_model: BaseModel,
    layout: ParameterLayout,
    vector: torch.Tensor,
    config: CollectConfig,
    *,
    seconds: float,
    num: int,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, int]:
    """Train a checkpoint on for a given time, the learning rate falling along a cosine from that of the collection.

    Time counts from the first step on. Networks are taken at even spaces of time, the last one at the end.

    Args:
        task ([`Task`]): The examples.
        base_model ([`BaseModel`]): The rest of the network.
        layout ([`ParameterLayout`]): The tensors that are trained.
        vector (`torch.Tensor` of shape `(D,)`): Where to begin.
        config ([`CollectConfig`]): Optimizer and batches of the collection.
        seconds (`float`): Wall time.
        num (`int`): Number of networks; fewer when there is no time for so many steps.
        seed (`int`, *optional*, defaults to 0): Of the order of the images.
        device (`torch.device` or `str`, *optional*): Where to train; an accelerator when there is one by default.

    Returns:
        `tuple[torch.Tensor, int]`: networks `(n, D)` with `1 <= n <= num`, and the number of steps.

    Raises:
        ValueError: a network is no longer finite, or the base model cannot be built.
    """
    network = base_model.build()
    layout.load_into(network, vector)
    network.to(device or default_device())
    # One checkpoint a step, without an end: time decides.
    unending = {"every": 1, "burn_in": 0, "num_checkpoints": 2**62, "lr_scheduler": "constant"}
    steps = config.model_copy(update=unending)
    start = None

    def progress() -> float:
        return 0.0 if start is None else min(1.0, (time.perf_counter() - start) / seconds)

    def schedule(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress()))

    networks: list[torch.Tensor] = []
    prefix = share_prefix(task, network, layout, steps)
    training = train_selection(task, network, layout, steps, seed, schedule=schedule, prefix=prefix)
    for step in itertools.count(1):
        next(training)
        start = start or time.perf_counter()
        if progress() >= (len(networks) + 1) / num:
            networks.append(layout.flatten(network))
            if not networks[-1].isfinite().all():
                raise ValueError(
                    f"expected finite parameters, found NaN or infinity at step {step}; lower "
                    f"{setting('collect.learning_rate')}"
                )
            if progress() == 1:
                return torch.stack(networks), step
