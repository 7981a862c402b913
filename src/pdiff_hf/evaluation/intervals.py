"""Intervals on accuracies, paired over the test images."""

from __future__ import annotations

import math

import torch
from scipy.stats import binomtest

# Two-sided 95 % quantile of the normal distribution.
Z95 = 1.959964


def exact_interval(num_right: int, num_images: int) -> list[float]:
    """Exact (Clopper-Pearson) 95 % interval of an accuracy."""
    interval = binomtest(num_right, num_images).proportion_ci(0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def mean_accuracy_interval(right: torch.Tensor) -> list[float]:
    """95 % interval of a group's mean accuracy, over the choice of test images and of networks.

    Args:
        right (`torch.Tensor` of shape `(n, N)`, `bool`): Whether network `i` is right on image `j`.
    """
    return _interval(right.double().mean(0), _variance_of_networks(right))


def accuracy_difference(right_a: torch.Tensor, right_b: torch.Tensor) -> dict[str, float | list[float]]:
    """Difference of the mean accuracies of two groups on the same images.

    Images on which both groups do equally well cancel, so the interval is narrower than the two intervals suggest.

    Args:
        right_a (`torch.Tensor` of shape `(a, N)`, `bool`): Whether a network of group a is right on an image.
        right_b (`torch.Tensor` of shape `(b, N)`, `bool`): The same for group b.

    Returns:
        `dict`: `difference` of a minus b, and its `ci95` (normal approximation).
    """
    difference = right_a.double().mean(0) - right_b.double().mean(0)
    variance = _variance_of_networks(right_a) + _variance_of_networks(right_b)
    return {"difference": difference.mean().item(), "ci95": _interval(difference, variance)}


def _variance_of_networks(right: torch.Tensor) -> float:
    """Variance of the mean over networks; 0 for a single network, which is not a sample of anything."""
    return right.double().mean(1).var().item() / len(right) if len(right) > 1 else 0.0


def _interval(per_image: torch.Tensor, variance_of_networks: float) -> list[float]:
    variance_of_images = per_image.var().item() / len(per_image) if len(per_image) > 1 else 0.0
    half = Z95 * math.sqrt(variance_of_images + variance_of_networks)
    mean = per_image.mean().item()
    return [mean - half, mean + half]
