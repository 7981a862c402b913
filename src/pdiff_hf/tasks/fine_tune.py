"""Fine-tuning as a baseline: what the generator's time gives when the checkpoints are simply trained on."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import torch

from ..base_model import BaseModel
from ..layout import ParameterLayout
from .collect_config import CollectConfig
from .task import Task
from .train_selection import share_prefix, train_selection


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
    trusted_imports: Sequence[str] = (),
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
        trusted_imports (`Sequence[str]`, *optional*): See [`BaseModel.build`].

    Returns:
        `tuple[torch.Tensor, int]`: networks `(n, D)` with `1 <= n <= num`, and the number of steps.

    Raises:
        ValueError: the loss is no longer finite, or the base model cannot be built.
    """
    network = base_model.build(trusted_imports)
    layout.load_into(network, vector)
    network.to(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    # One checkpoint a step, without an end: time decides.
    steps = config.model_copy(update={"every": 1, "burn_in": 0, "num_checkpoints": 2**62})
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
            networks.append(layout.flatten(network).cpu())
            if progress() == 1:
                return torch.stack(networks), step
