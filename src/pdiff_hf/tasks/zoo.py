"""Training of many independent networks, several at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.func import functional_call, vmap

from ..forward import forward_logits
from ..layout import ParameterLayout
from .base_training import num_training_steps, train_steps
from .config import BaseTrainingConfig
from .populations import TrainExamples
from .task import Task
from .train_selection import SharedPrefix

# More networks at once are no faster.
MAX_NETWORKS = 50
# Parameters of all networks that are trained at once; larger ones keep the processor busy one at a time.
MAX_VALUES = 2**20
# Of all their inputs in a batch; activations take several times as much.
MAX_INPUT_BYTES = 2**28

Keep = Callable[[Sequence[int], int, Mapping[str, torch.Tensor], list[float]], None]


class _Logits(nn.Module):
    """A network that returns a tensor whatever its library returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return forward_logits(self.model, images)


def networks_at_once(num_values: int, batch_bytes: int = 0) -> int:
    """How many networks are trained together, of so many trained values and bytes of inputs in a batch each.

    It is the same on every machine and for any number of networks.
    """
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
    together (an operation without batching rule, not enough memory), and convolutions on a CPU, are trained one after
    another.

    Args:
        task ([`Task`]): The examples.
        network (`nn.Module`): One of them, on the device where all are trained, in eval mode in the end.
        starts (`Sequence[Mapping]`): Of every network where it begins: all parameters and buffers by name, or those of
            `layout`.
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
    examples = examples or [TrainExamples(task.arrays("train")[1])] * len(starts)
    stops = {num_training_steps(task, config)} if stops is None else stops
    network.train() if layout is None else layout.freeze_rest(network)

    def train(places: Sequence[int]) -> bool:
        """Train some of them together; `False`, with nothing kept, when they cannot be computed so."""
        own = [examples[place] for place in places]
        tensors = {name: torch.stack([starts[place][name].detach() for place in places]) for name in starts[0]}
        for name, parameter in network.named_parameters():
            if name in tensors:
                tensors[name].requires_grad_(parameter.requires_grad)
        losses_of = _losses(network, tensors, prefix, config.mixed_precision == "bf16")
        device = next(network.parameters()).device
        batches = _stacked_batches(task, [seeds[place] for place in places], own, config, device, prefix)
        set_seed(seeds[places[0]])
        training = train_steps(task, tensors.values(), losses_of, batches, config, device)
        steps_per_epoch = len(task.batch_indices("train", config.train_batch_size))
        for step in itertools.count(1):
            try:
                losses = next(training, None)
            except RuntimeError:  # an operation without batching rule, or not enough memory
                if step > 1 or len(places) == 1:
                    raise
                return False
            if losses is None:
                return True
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
    is_stackable = (
        len(starts) > 1 and (layout is None or prefix is not None) and _is_faster_stacked(network, starts[0])
    )
    if not (is_stackable and train(range(len(starts)))):
        for place in range(len(starts)):
            train([place])
    network.eval()


def _is_faster_stacked(network: nn.Module, start: Mapping[str, torch.Tensor]) -> bool:
    """Whether networks are trained faster together than one after another; convolutions are not on a CPU."""
    is_cpu = next(network.parameters()).device.type == "cpu"
    return not (is_cpu and any(tensor.ndim == 4 for tensor in start.values()))


def _losses(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: SharedPrefix | None, is_half: bool
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


def _stacked_batches(
    task: Task,
    seeds: Sequence[int],
    examples: Sequence[TrainExamples],
    config: BaseTrainingConfig,
    device: torch.device,
    prefix: SharedPrefix | None,
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Batches of R networks without an end: inputs `(R, B, …)`, of the tail where there is a prefix, and labels."""
    is_loaded = prefix is None and (task.is_augmented or not task.fits_in_memory("train"))
    kept = () if is_loaded else (task.arrays("train")[0].to(device),) if prefix is None else prefix.activations

    def of_run(seed: int, positions: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for epoch in itertools.count():
            order = ("train", config.train_batch_size, seed, epoch, positions)
            indices = task.batch_indices(*order)
            loaded = (images for images, _ in task.batches(*order)) if is_loaded else itertools.repeat(None)
            yield from zip(indices, loaded, strict=False)

    labels = torch.stack([own.labels for own in examples])
    runs = (of_run(seed, own.positions) for seed, own in zip(seeds, examples, strict=True))
    for batches in zip(*runs, strict=True):
        indices, loaded = zip(*batches, strict=True)
        index = torch.stack(indices)
        own_labels = labels.gather(1, index).to(device)
        if is_loaded:
            yield (torch.stack(loaded).to(device),), own_labels
            continue
        rows = (index if prefix is None else prefix.rows[index]).to(device)
        yield tuple(tensor[rows] for tensor in kept), own_labels
