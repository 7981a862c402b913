"""Intervals on accuracies and other scores, paired over the test examples.

Networks that depend on each other, such as checkpoints of one run, count as fewer: `n_effective` independent ones.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import beta, binomtest, t

# Two-sided 95 % quantile of the normal distribution.
Z95 = 1.959964


def exact_interval(num_right: float, num: float) -> list[float]:
    """Exact (Clopper-Pearson) 95 % interval of a share, such as an accuracy.

    Numbers need not be whole: a share of dependent things is that of `n_effective` ones. Source: Korn and Graubard
    1998, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
    data".
    """
    low = beta.ppf(0.025, num_right, num - num_right + 1) if num_right > 0 else 0.0
    high = beta.ppf(0.975, num_right + 1, num - num_right) if num_right < num else 1.0
    return [float(low), float(high)]


def mean_interval(values: torch.Tensor, n_effective: float | None = None) -> list[float] | None:
    """95 % interval of a group's mean, over the choice of test examples and of networks; `None` of a single value.

    Both variances add up; the quantile is Student's, of as many degrees of freedom as their sum has (Welch 1947).

    Args:
        values (`torch.Tensor` of shape `(n, N)`): Whether network `i` is right on example `j`, or its score.
        n_effective (`float`, *optional*): How many independent networks they count as; all `n` by default.
    """
    return _interval(values.double().mean(0), _over_networks(values, n_effective))


def accuracy_difference(
    right_a: torch.Tensor,
    right_b: torch.Tensor,
    n_effective_a: float | None = None,
    n_effective_b: float | None = None,
) -> dict[str, float | list[float] | None]:
    """`difference` of the mean scores of two groups, a minus b, and its `ci95`, made as in [`mean_interval`].

    The groups say by `(a, N)` and `(b, N)` which network is right on which example, or its score there. Examples on
    which both do equally well cancel, so the interval is narrower than the two intervals suggest. Networks of both are
    taken to be independent of each other.
    """
    difference = right_a.double().mean(0) - right_b.double().mean(0)
    networks = (*_over_networks(right_a, n_effective_a), *_over_networks(right_b, n_effective_b))
    return {"difference": difference.mean().item(), "ci95": _interval(difference, networks)}


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


def sample_mean_interval(values: torch.Tensor, n_effective: float | None = None) -> list[float] | None:
    """95 % interval of the mean of a sample `(n,)`, by Student's t; `None` for fewer than 2 finite values.

    They count as `n_effective` independent values, by default all of them.
    """
    n = len(values) if n_effective is None else n_effective
    if n < 2 or not values.isfinite().all():
        return None
    mean = values.double().mean().item()
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(_variance_of_mean(values, n))
    return [mean - half, mean + half]


def _variance_of_mean(values: torch.Tensor, n: float) -> float:
    """Of `n` independent values: the sample's own variance is too small by the part (n - 1) / n."""
    return values.double().var(correction=0).item() / (n - 1)


def _over_networks(right: torch.Tensor, n_effective: float | None) -> tuple[tuple[float, float], ...]:
    """Variance of the mean over networks, with its degrees of freedom; one network alone is no sample of anything."""
    n = len(right) if n_effective is None else n_effective
    return ((_variance_of_mean(right.double().mean(1), n), n - 1),) if n > 1 else ()


def _interval(per_example: torch.Tensor, networks: tuple[tuple[float, float], ...]) -> list[float] | None:
    n, mean = len(per_example), per_example.mean().item()
    parts = (*(((_variance_of_mean(per_example, n), n - 1),) if n > 1 else ()), *networks)
    if not parts:
        return None
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return [mean, mean]
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    half = float(t.ppf(0.975, freedom)) * math.sqrt(total)
    return [mean - half, mean + half]
