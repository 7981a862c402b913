"""Intervals on accuracies, paired over the test examples."""

from __future__ import annotations

import math

import torch
from scipy.stats import binomtest, t

# Two-sided 95 % quantile of the normal distribution.
Z95 = 1.959964


def exact_interval(num_right: int, num_images: int) -> list[float]:
    """Exact (Clopper-Pearson) 95 % interval of an accuracy."""
    interval = binomtest(num_right, num_images).proportion_ci(0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def mean_interval(values: torch.Tensor) -> list[float]:
    """95 % interval of a group's mean, over the choice of test examples and of networks (normal approximation).

    `values` `(n, N)` say whether network `i` is right on example `j`, or its loss there.
    """
    return _interval(values.double().mean(0), _variance_of_networks(values))


def accuracy_difference(right_a: torch.Tensor, right_b: torch.Tensor) -> dict[str, float | list[float]]:
    """`difference` of the mean accuracies of two groups, a minus b, and its `ci95` (normal approximation).

    The groups say by `(a, N)` and `(b, N)`, `bool`, which network is right on which example. Examples on which both do
    equally well cancel, so the interval is narrower than the two intervals suggest.
    """
    difference = right_a.double().mean(0) - right_b.double().mean(0)
    variance = _variance_of_networks(right_a) + _variance_of_networks(right_b)
    return {"difference": difference.mean().item(), "ci95": _interval(difference, variance)}


def paired_comparison(right_a: torch.Tensor, right_b: torch.Tensor) -> dict:
    """Compare two networks, right or not `(N,)` on the same examples, by McNemar's exact test.

    Source: McNemar 1947; the exact version is the sign test on the examples on which one of the two alone is right.
    The interval is that of the test: exact (Clopper-Pearson) for the share of a among these examples.

    Returns:
        `dict`: `difference` of the accuracies, a minus b, with `ci95`; `p_value` of the hypothesis that both are
        equally accurate; `only_a` and `only_b`, the numbers of examples on which only one is right.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    found = {"difference": (only_a - only_b) / len(right_a), "ci95": [0.0, 0.0], "p_value": 1.0}
    if discordant := only_a + only_b:
        found["ci95"] = [(2 * share - 1) * discordant / len(right_a) for share in exact_interval(only_a, discordant)]
        found["p_value"] = float(binomtest(only_a, discordant).pvalue)
    return {**found, "only_a": only_a, "only_b": only_b}


def sample_mean_interval(values: torch.Tensor) -> list[float] | None:
    """95 % interval of the mean of a sample `(n,)`, by Student's t; `None` for fewer than 2 finite values."""
    if len(values) < 2 or not values.isfinite().all():
        return None
    values = values.double()
    half = float(t.ppf(0.975, len(values) - 1)) * values.std().item() / math.sqrt(len(values))
    mean = values.mean().item()
    return [mean - half, mean + half]


def _variance_of_networks(right: torch.Tensor) -> float:
    """Variance of the mean over networks; 0 for a single network, which is not a sample of anything."""
    return right.double().mean(1).var().item() / len(right) if len(right) > 1 else 0.0


def _interval(per_image: torch.Tensor, variance_of_networks: float) -> list[float]:
    variance_of_images = per_image.var().item() / len(per_image) if len(per_image) > 1 else 0.0
    half = Z95 * math.sqrt(variance_of_images + variance_of_networks)
    mean = per_image.mean().item()
    return [mean - half, mean + half]
