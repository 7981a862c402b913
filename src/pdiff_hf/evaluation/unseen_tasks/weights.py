"""Networks for unseen tasks that are made of the weights of seen ones: no generator, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .networks import TaskNetworks
from .regressions import nearest_seen

# Of weights exp(-d / temperature), d the number of classes in which subsets differ.
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

# Subsets (T, C) → networks (T, D).
Make = Callable[[torch.Tensor], torch.Tensor]


def mean_of_seen(seen: TaskNetworks) -> Make:
    """The same for every task."""
    mean = seen.mean_by_task_vectors().mean(0)
    return lambda wanted: mean.expand(len(wanted), -1)


def mean_of_nearest(seen: TaskNetworks) -> Make:
    """The mean of the networks whose subsets differ in the fewest classes."""
    return lambda wanted: torch.stack([seen.vectors[rows].mean(0) for rows in nearest_seen(seen.conditions, wanted)])


def weighted_means(seen: TaskNetworks) -> Iterator[Make]:
    """Means of all networks seen, nearer ones counting more, of several temperatures."""
    vectors = seen.vectors[:]
    for temperature in TEMPERATURES:

        def make(wanted: torch.Tensor, temperature: float = temperature) -> torch.Tensor:
            distances = torch.cdist(wanted, seen.conditions, p=1)
            return (-distances / temperature).softmax(1) @ vectors

        yield make


def task_arithmetic(seen: TaskNetworks) -> Iterator[Make]:
    """The mean and, for every class of the subset, the vector of this class, of several scales.

    A class vector is the mean of the networks with the class minus that of those without it, as task vectors add up
    (Source: Ilharco et al. 2023, arXiv 2212.04089).
    """
    vectors, members = seen.vectors[:], seen.conditions.to(torch.float32)
    counts = members.sum(0)[:, None]
    with_class = members.T @ vectors / counts.clamp(min=1)
    without = (1 - members).T @ vectors / (len(members) - counts).clamp(min=1)
    mean, directions = vectors.mean(0), with_class - without
    shares = members.mean(0)
    for scale in SCALES:
        yield lambda wanted, scale=scale: mean + scale * (wanted.to(torch.float32) - shares) @ directions
