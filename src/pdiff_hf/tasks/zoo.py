"""Training of many independent networks, several at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ..forward import forward_logits
from ..machine import ThreadChoice
from .base_training import make_optimizer, train_base_model
from .config import BaseTrainingConfig
from .task import Task

# More networks at once are no faster.
MAX_NETWORKS = 50
# Parameters of all networks that are trained at once; larger ones keep the processor busy one at a time.
MAX_VALUES = 2**20


class _Logits(nn.Module):
    """A network that returns a tensor whatever its library returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return forward_logits(self.model, images)


def networks_at_once(model: nn.Module) -> int:
    """How many networks like this one are trained together; the same on every machine and for any number of them."""
    return max(1, min(MAX_NETWORKS, MAX_VALUES // sum(parameter.numel() for parameter in model.parameters())))


def train_networks(
    task: Task,
    networks: Sequence[nn.Module],
    seeds: Sequence[int],
    config: BaseTrainingConfig,
    device: torch.device | str,
) -> None:
    """Trains networks of one architecture in place, each as [`train_base_model`] does with its own seed.

    Their parameters are stacked, and one AdamW over stacked parameters is an AdamW for each network: the results are
    those of training one after another but for rounding. Networks that cannot be computed together (dropout, images
    that are augmented or do not fit in memory, operations without a batching rule) are trained one after another.

    Every network has a seed of the order of the images, in place of that of `config`. In the end they are in eval mode
    and on `device`.

    Raises:
        ValueError: as [`train_base_model`].
    """
    is_stackable = len(networks) > 1 and not task.is_augmented and task.fits_in_memory("train")
    if is_stackable and _train_stacked(task, networks, seeds, config, torch.device(device)):
        return
    for network, seed in zip(networks, seeds, strict=True):
        train_base_model(task, network, config.model_copy(update={"seed": seed}), device, progress=False)


def _train_stacked(
    task: Task,
    networks: Sequence[nn.Module],
    seeds: Sequence[int],
    config: BaseTrainingConfig,
    device: torch.device,
) -> bool:
    """Train networks at once; `False`, with the networks as they were, when they cannot be computed together."""
    modules = [_Logits(network).to(device).train() for network in networks]
    parameters, buffers = stack_module_state(modules)

    def losses_of(parameters, buffers, images, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            logits = functional_call(modules[0], (parameters, buffers), (images,))
        return nn.functional.cross_entropy(logits.float(), labels)

    # Random numbers would be others than those of a network alone.
    step_losses = vmap(losses_of, randomness="error")
    optimizer, lr_scheduler, _ = make_optimizer(task, parameters.values(), config)
    images, labels = (tensor.to(device) for tensor in task.arrays("train"))
    threads = ThreadChoice(device)
    for epoch in range(config.epochs):
        orders = [torch.stack(task.batch_indices("train", config.train_batch_size, seed, epoch)) for seed in seeds]
        losses = []
        for step, index in enumerate(torch.stack(orders, 1).to(device)):
            with threads.step():
                try:
                    loss = step_losses(parameters, buffers, images[index], labels[index])
                except RuntimeError:  # dropout, an operation without batching rule, or not enough memory
                    if epoch or step:
                        raise
                    return False
                # The sum has the gradient of every network's own loss.
                loss.sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                lr_scheduler.step()
            losses.append(loss.detach())
        for seed, loss in zip(seeds, torch.stack(losses).mean(0).tolist(), strict=True):
            if not math.isfinite(loss):
                raise ValueError(
                    f"expected a finite loss, found {loss} in epoch {epoch} of the network with seed {seed}; lower "
                    "base_training.learning_rate"
                )
    with torch.no_grad():
        for row, module in enumerate(modules):
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                tensor.copy_((parameters if name in parameters else buffers)[name][row])
            module.eval()
    return True
