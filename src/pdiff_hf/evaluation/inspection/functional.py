"""What a dataset's networks do: their accuracy, that on the way between two and of their average, and diversity."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..baselines import averages, uniform_soup
from ..evaluator import ParameterEvaluator
from ..intervals import accuracy_difference
from ..scores import NetworkEvaluator
from .diversity import functional_diversity

NUM_ORIGINALS = 100
# Pairs of networks between which the barrier is measured, of each kind.
NUM_PAIRS = 10
NUM_AVERAGES = 20
# Images on which networks between two originals are evaluated.
NUM_BARRIER_IMAGES = 1000
NUM_ALPHAS = 11
# Networks are linearly connected below this rise of the error. Source: Frankle et al. 2020, arXiv 1912.05671, §3.
MAX_BARRIER = 0.02
# Values of one column block of the soup, 128 MB in float64.
BLOCK_VALUES = 2**24


def functional_figures(
    vectors: torch.Tensor,
    runs: torch.Tensor,
    ordered: Sequence[Sequence[int]],
    evaluator: ParameterEvaluator,
    seed: int,
) -> dict:
    """The figures `functional` of a report, of raw rows `(K, D)` of the runs numbered `(K,)` on validation examples.

    `ordered` are the rows of every run of which the order in time is known, in this order.

    Returns:
        `dict`: `num_images`, `averaging` of [`gain_of_averaging`], those of [`interpolation_barriers`], `basins`:
        `"many"` where their mean is above 2 points, else `"one"`; and `diversity` of [`functional_diversity`].
    """
    generator = torch.Generator().manual_seed(seed)
    averaging = gain_of_averaging(vectors, evaluator, generator)
    barriers = interpolation_barriers(vectors, runs, evaluator, generator)
    many = any(barrier["mean"] > MAX_BARRIER for barrier in barriers.values() if barrier is not None)
    return {
        "num_images": len(evaluator.labels),
        "averaging": averaging,
        **barriers,
        "basins": "many" if many else "one",
        "diversity": functional_diversity(vectors, ordered, evaluator, generator),
    }


def score_figures(vectors: torch.Tensor, evaluator: NetworkEvaluator, seed: int) -> dict:
    """What raw rows `(K, D)` are worth by a metric of any unit, of which predictions are not known.

    Returns:
        `dict`: `metric` (`name`, `higher_is_better`), `num_originals` random rows, at most `NUM_ORIGINALS`, with the
        `mean`, `std`, `min` and `max` of their scores, and the score of the `uniform_soup` of all rows.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = vectors[torch.randperm(len(vectors), generator=generator)[:NUM_ORIGINALS]]
    scores = evaluator.score(sample).double()
    return {
        "metric": evaluator.metric.model_dump(),
        "num_originals": len(sample),
        "mean": scores.mean().item(),
        "std": scores.std(correction=0).item(),
        "min": scores.min().item(),
        "max": scores.max().item(),
        "uniform_soup": evaluator.score(_soup(vectors)).item(),
    }


def gain_of_averaging(vectors: torch.Tensor, evaluator: ParameterEvaluator, generator: torch.Generator) -> dict:
    """Accuracy of averages minus the mean accuracy of originals `(K, D)`, paired over the examples.

    Returns:
        `dict`: `original_accuracy` of `num_originals` random rows; `uniform_soup` of all rows and `average_16` (mean
        over draws), each with `accuracy`, `difference` and `ci95`.
    """
    sample = vectors[torch.randperm(len(vectors), generator=generator)[:NUM_ORIGINALS]]
    right = evaluator.predict(sample).scores
    result = {"num_originals": len(sample), "original_accuracy": right.double().mean().item()}
    for name, networks in (
        ("uniform_soup", _soup(vectors)),
        ("average_16", averages(vectors, NUM_AVERAGES, generator)),
    ):
        own = evaluator.predict(networks).scores
        result[name] = {"accuracy": own.double().mean().item(), **accuracy_difference(own, right)}
    return result


def _soup(vectors: torch.Tensor) -> torch.Tensor:
    """The mean `(1, D)` of rows `(K, D)`, in little memory."""
    return torch.cat([uniform_soup(b) for b in vectors.split(max(1, BLOCK_VALUES // len(vectors)), 1)], 1)


def interpolation_barriers(
    vectors: torch.Tensor, runs: torch.Tensor, evaluator: ParameterEvaluator, generator: torch.Generator
) -> dict:
    """Error barriers between random pairs of rows, within runs and between runs, on at most 1 000 examples.

    The barrier of a pair is the maximum over alpha of the error of `(1 - alpha) a + alpha b` minus the interpolated
    errors of `a` and `b`, at 11 values of alpha. Source: Frankle et al. 2020, arXiv 1912.05671; in this form Entezari
    et al. 2022, arXiv 2110.06296.

    Returns:
        `dict`: `within_runs` and `between_runs`, `None` where there are no pairs, each with `num_pairs`, `mean`, `max`
        (fractions of the examples) and `errors`, the mean error at the values of alpha from 0 to 1.
    """
    evaluator = evaluator.reordered(torch.randperm(len(evaluator.labels), generator=generator))
    num_images = min(NUM_BARRIER_IMAGES, len(evaluator.labels))
    first, second = torch.triu_indices(len(vectors), len(vectors), 1)
    same = runs[first] == runs[second]
    result: dict[str, dict | None] = {"within_runs": None, "between_runs": None}
    for name, mask in (("within_runs", same), ("between_runs", ~same)):
        candidates = mask.nonzero()[:, 0]
        candidates = candidates[torch.randperm(len(candidates), generator=generator)[:NUM_PAIRS]]
        if not len(candidates):
            continue
        errors = torch.empty(len(candidates), NUM_ALPHAS)
        for index, pair in enumerate(candidates):
            errors[index] = _errors_between(vectors[first[pair]], vectors[second[pair]], evaluator, num_images)
        barriers = _rises(errors)
        result[name] = {
            "num_pairs": len(candidates),
            "mean": barriers.mean().item(),
            "max": barriers.max().item(),
            "errors": errors.mean(0).tolist(),
        }
    return result


def pair_barrier(first: torch.Tensor, second: torch.Tensor, evaluator: ParameterEvaluator) -> float:
    """The barrier of [`interpolation_barriers`] between two networks `(D,)`."""
    num_images = min(NUM_BARRIER_IMAGES, len(evaluator.labels))
    return _rises(_errors_between(first, second, evaluator, num_images)[None]).item()


def _errors_between(
    first: torch.Tensor, second: torch.Tensor, evaluator: ParameterEvaluator, num_images: int
) -> torch.Tensor:
    """Errors `(NUM_ALPHAS,)` on the way from one network `(D,)` to another."""
    networks = torch.lerp(first, second, torch.linspace(0, 1, NUM_ALPHAS)[:, None])
    return 1 - evaluator.predict(networks, num_images).accuracy


def _rises(errors: torch.Tensor) -> torch.Tensor:
    """By how much errors `(n, NUM_ALPHAS)` rise above the straight line between the first and the last, at most."""
    straight = torch.lerp(errors[:, :1], errors[:, -1:], torch.linspace(0, 1, NUM_ALPHAS)[None])
    return (errors - straight).amax(1)
