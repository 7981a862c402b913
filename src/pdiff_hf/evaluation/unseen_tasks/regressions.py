"""Regressions from the classes of a subset to weights or latents: what needs no generator.

All are fitted to the networks of seen tasks, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

# Conditions (T, C) → targets (T, d).
Predict = Callable[[torch.Tensor], torch.Tensor]

PENALTIES = [10.0**power for power in range(-4, 5)]
# Of kernels exp(-d / length), d the number of classes in which subsets differ.
LENGTHS = (1.0, 2.0, 4.0)


def features(conditions: torch.Tensor, pairs: bool) -> torch.Tensor:
    """A constant, the bits as ±1, and with `pairs` the products of two of them `(T, F)`."""
    signs = 2 * conditions.double() - 1
    columns = [torch.ones(len(signs), 1, dtype=signs.dtype), signs]
    if pairs:
        first, second = torch.triu_indices(signs.shape[1], signs.shape[1], 1)
        columns.append(signs[:, first] * signs[:, second])
    return torch.cat(columns, 1)


def ridge(conditions: torch.Tensor, targets: torch.Tensor, penalty: float, pairs: bool) -> Predict:
    """Ridge regression of all features but the constant, on `(K, C)` and `(K, d)`."""
    x, y = features(conditions, pairs), targets.double()
    penalties = penalty * torch.eye(x.shape[1], dtype=x.dtype)
    penalties[0, 0] = 0
    weights = torch.linalg.solve(x.T @ x + penalties, x.T @ y)
    return lambda wanted: (features(wanted, pairs) @ weights).float()


def kernel_ridge(conditions: torch.Tensor, targets: torch.Tensor, penalty: float, length: float) -> Predict:
    """Kernel ridge regression around the targets' mean, on `(K, C)` and `(K, d)`."""
    known, mean = conditions.double(), targets.double().mean(0)

    def kernel(wanted: torch.Tensor) -> torch.Tensor:
        return (-torch.cdist(wanted.double(), known, p=1) / length).exp()

    gram = kernel(conditions) + penalty * torch.eye(len(known), dtype=torch.float64)
    weights = torch.linalg.solve(gram, targets.double() - mean)
    return lambda wanted: (mean + kernel(wanted) @ weights).float()


# By the name of the way; with all values of what regularises it.
KINDS: dict[str, tuple[Callable[..., Predict], list[tuple]]] = {
    "ridge": (ridge, [(penalty, False) for penalty in PENALTIES]),
    "ridge_pairs": (ridge, [(penalty, True) for penalty in PENALTIES]),
    "kernel_ridge": (kernel_ridge, [(penalty, length) for penalty in PENALTIES for length in LENGTHS]),
}


def choose_regressions(
    conditions: torch.Tensor, targets: torch.Tensor, worth: Callable[[Predict], float]
) -> Iterator[tuple[str, Predict]]:
    """Of every kind the regression that is worth most, of those with the least penalty when they are equal."""
    for name, (make, options) in KINDS.items():
        yield name, max((make(conditions, targets, *own) for own in options), key=worth)


def residual_draws(
    predict: Predict, conditions: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor, seed: int
) -> torch.Tensor:
    """Draws `(T, d)` from the Gaussian around a regression: its predictions and what it misses on the seen.

    Residuals are drawn with their covariance, as sums of those of all seen networks with weights of variance 1 / K.
    """
    residuals = targets - predict(conditions)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(wanted), len(residuals), generator=generator) / len(residuals) ** 0.5
    return predict(wanted) + weights @ (residuals - residuals.mean(0))


def nearest_seen(seen: torch.Tensor, conditions: torch.Tensor) -> list[torch.Tensor]:
    """Of every condition `(T, C)` the rows of those seen `(K, C)` that differ in the fewest classes."""
    distances = torch.cdist(conditions, seen, p=1)
    return [(row == row.min()).nonzero()[:, 0] for row in distances]
