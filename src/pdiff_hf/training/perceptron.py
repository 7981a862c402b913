"""A deterministic rival of the denoiser: a perceptron from conditions to weights or latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

WIDTH = 256
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAYS = (0.0, 1e-2, 1.0)


def fit_perceptrons(
    conditions: torch.Tensor, targets: torch.Tensor, seed: int = 0, *, steps: int = 1000
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Perceptrons with two hidden layers, by the squared error of standardised targets; AdamW, cosine decay.

    Args:
        conditions (`torch.Tensor` of shape `(K, C)`), targets (`torch.Tensor` of shape `(K, d)`): What they learn.
        seed (`int`, *optional*, defaults to 0): Of weights and batches.
        steps (`int`, *optional*, defaults to 1000): Of training, as the denoiser's.

    Yields:
        One for every weight decay, conditions `(T, C)` → targets `(T, d)`.
    """
    center, scale = targets.mean(0), targets.std(0, correction=0).clamp(min=1e-8)
    wanted, given = (targets - center) / scale, 2 * conditions.float() - 1
    for weight_decay in WEIGHT_DECAYS:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            sizes = (given.shape[1], WIDTH, WIDTH, wanted.shape[1])
            layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
            network = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(given), (min(BATCH, len(given)),), generator=generator)
                loss = nn.functional.mse_loss(network(given[rows]), wanted[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        network.requires_grad_(False)
        yield lambda asked, network=network: network(2 * asked.float() - 1) * scale + center
