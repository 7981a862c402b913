"""Ensembles of networks: accuracy and calibration of their averaged probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from ..data.vectors import Vectors, take_rows
from .evaluator import NUM_BINS, ParameterEvaluator, confidence_bins
from .intervals import Z95

# What is measured, and the largest value it can have.
METRICS = {"accuracy": 1.0, "nll": math.inf, "ece": 1.0}
# Their standard deviation is that of the estimator to about 3 %.
NUM_RESAMPLES = 500


class EnsembleEvaluator:
    """Evaluates ensembles of M networks of a group, which average their members' probabilities.

    Every repeat draws networks at random without replacement, and the ensemble of size M holds the first M of them.
    The draws of different repeats are disjoint when the group has enough networks, else independent of each other.
    Source of the averages: Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4.

    Intervals are the mean over the repeats plus and minus 1.96 standard deviations of a bootstrap that resamples with
    replacement both the N test examples and the R repeats: N examples, the same for all repeats, sizes and groups, and
    R - 1 repeats, which makes the variance between repeats unbiased (1 of 1). Source: Owen 2007, "The pigeonhole
    bootstrap", arXiv 0712.1111. The calibration error of a sample is biased upwards, a sum of absolute values; the
    lower end of its interval is lowered by that bias, as the resamples show it.

    Args:
        evaluator ([`ParameterEvaluator`]): On the test examples.
        sizes (`Sequence[int]`, *optional*, defaults to `(1, 2, 5, 10)`): Numbers M of networks; those above `n` are
            left out.
        repeats (`int`, *optional*, defaults to 5): Ensembles of every size; 1 for a group of one network.
        seed (`int`, *optional*, defaults to 0): Every group's draws start from it, so adding a group changes no other.

    Raises:
        ValueError: a size or `repeats` is not positive.
    """

    def __init__(
        self, evaluator: ParameterEvaluator, sizes: Sequence[int] = (1, 2, 5, 10), repeats: int = 5, seed: int = 0
    ):
        if repeats < 1 or min(sizes, default=0) < 1:
            raise ValueError(f"expected positive sizes and repeats, found sizes {list(sizes)} and {repeats} repeats")
        self._evaluator, self._sizes, self._repeats, self._seed = evaluator, sizes, repeats, seed
        self._labels = evaluator.labels.cpu()
        num = len(self._labels)
        self._image_weights = _resample(num, num, torch.Generator().manual_seed(seed))

    def evaluate(self, vectors: Vectors) -> dict[str, dict[str, dict]]:
        """Ensembles of networks `(n, D)`.

        Returns:
            `dict`: by M as a string: `accuracy`, `nll` (nats) and `ece` (15 bins), each with `mean` and `ci95`, `None`
            where a value is not finite. Averages that are NaN count as wrong.

        Raises:
            ValueError: the networks do not fit the layout.
        """
        sizes = sorted({size for size in self._sizes if size <= len(vectors)})
        if not sizes:
            return {}
        generator = torch.Generator().manual_seed(self._seed)
        draws = _draw(len(vectors), sizes[-1], 1 if len(vectors) == 1 else self._repeats, generator)
        repeat_weights = _resample(len(draws), max(1, len(draws) - 1), generator)
        values: dict[int, list[torch.Tensor]] = {size: [] for size in sizes}
        resampled: dict[int, list[torch.Tensor]] = {size: [] for size in sizes}
        for size, log_probabilities in _ensembles(vectors, draws, self._evaluator, sizes):
            own, resamples = _metrics(log_probabilities, self._labels, self._image_weights)
            values[size].append(own)
            resampled[size].append(resamples)
        result = {}
        for size in sizes:
            means = torch.stack(values[size]).mean(0)
            resamples = (torch.stack(resampled[size], 1) * repeat_weights[..., None]).sum(1)
            result[str(size)] = {
                metric: _with_interval(metric, mean.item(), column)
                for metric, mean, column in zip(METRICS, means, resamples.unbind(1), strict=True)
            }
        return result


def evaluate_ensembles(
    groups: Mapping[str, Vectors],
    evaluator: ParameterEvaluator,
    best_single: torch.Tensor | None = None,
    sizes: Sequence[int] = (1, 2, 5, 10),
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, dict]]]:
    """What [`EnsembleEvaluator`], whose arguments these are, finds of groups of networks `(n, D)`, by name.

    `best_single` `(D,)` is one chosen network to compare with, a group of one.
    """
    ensembles = EnsembleEvaluator(evaluator, sizes, repeats, seed)
    found = {name: ensembles.evaluate(vectors) for name, vectors in groups.items()}
    return found if best_single is None else {**found, "best_single": ensembles.evaluate(best_single[None])}


def _draw(n: int, size: int, repeats: int, generator: torch.Generator) -> torch.Tensor:
    """Indices `(repeats, size)` of networks, without replacement in a row, and altogether if there are enough."""
    if repeats * size <= n:
        return torch.randperm(n, generator=generator)[: repeats * size].reshape(repeats, size)
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(repeats)])


def _resample(n: int, num_drawn: int, generator: torch.Generator) -> torch.Tensor:
    """Weight of each of `n` things in each resample of `num_drawn` with replacement, `(NUM_RESAMPLES, n)`."""
    drawn = torch.randint(n, (NUM_RESAMPLES, num_drawn), generator=generator)
    return torch.zeros(NUM_RESAMPLES, n).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / num_drawn))


def _ensembles(
    vectors: Vectors, draws: torch.Tensor, evaluator: ParameterEvaluator, sizes: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Sizes and log probabilities `(N, classes)` of all ensembles, of which one is in memory at a time."""
    for start, logits in evaluator.logits(take_rows(vectors, draws.flatten())):
        for index, network in enumerate(logits, start):
            size = index % draws.shape[1] + 1
            log_probabilities = network.log_softmax(-1)
            if size == 1:
                total = torch.full_like(log_probabilities, -math.inf)
            # In log space, where a confident mistake does not underflow to an infinite loss.
            total = torch.logaddexp(total, log_probabilities)
            if size in sizes:
                yield size, (total - math.log(size)).cpu()


def _metrics(
    log_probabilities: torch.Tensor, labels: torch.Tensor, image_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `METRICS` of an ensemble, `(3,)`, and those on every resample of the examples, `(NUM_RESAMPLES, 3)`."""
    confidences, predictions = log_probabilities.max(-1)
    right = ((predictions == labels) & ~confidences.isnan()).float()
    losses = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    confidences = confidences.exp()
    bins, gaps = confidence_bins(confidences)[:, None], (right - confidences)[:, None]
    gaps = torch.zeros(len(labels), NUM_BINS + 1).scatter_(1, bins, gaps)
    accuracy, nll, *resampled = (image_weights @ torch.column_stack([right, losses, gaps])).unbind(1)
    own = torch.stack([right.mean(), losses.mean(), gaps.mean(0).abs().sum()])
    return own, torch.stack([accuracy, nll, torch.stack(resampled).abs().sum(0)], 1)


def _with_interval(metric: str, mean: float, resamples: torch.Tensor) -> dict[str, float | list[float] | None]:
    half = Z95 * resamples.std().item()
    if not math.isfinite(mean + half):
        return {"mean": mean if math.isfinite(mean) else None, "ci95": None}
    low, high = max(0.0, mean - half), min(METRICS[metric], mean + half)
    if metric == "ece":
        # Noise in bins without a gap gives E|z| sigma in the sample and E|z| sqrt(2) sigma in its resamples.
        bias = max(0.0, resamples.mean().item() - mean) / (math.sqrt(2) - 1)
        low = max(0.0, low - bias)
    return {"mean": mean, "ci95": [low, high]}
