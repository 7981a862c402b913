"""The numbers of a group for `metrics.json`, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..results.metric import Metric
from ..results.metrics import SCHEMA, Metrics
from ..results.records import (
    Cost,
    Difference,
    GroupMetrics,
    Mean,
    Selected,
    ShareIntervals,
    Shares,
    Similarity,
    SimilarityIntervals,
)
from .groups import describe_group
from .intervals import exact_interval, mean_interval, sample_mean_interval
from .unseen_tasks.summary import average_seeds
from .unseen_tasks.verdict import tasks_verdict
from .verdict import make_verdict, population_finding

# A value and the key of its interval beside it.
CENTERS = (
    ("mean", "ci95"),
    ("difference", "ci95"),
    ("difference", "difference_ci95"),
    ("test_accuracy", "test_ci95"),
    ("test_score", "test_ci95"),
)

# These describe one run, or have no mean.
LEFT_OUT = (
    *("p_value", "only_generated", "only_other", "index", "verdict", "finding", "ensembles", "seed", "curve"),
    "chosen",
)

# A network is novel at m x when it is farther from its nearest original than m times what is usual among independent
# originals, and a copy when it is closer than a third of what is usual among all of them, neighbours of a trajectory
# included: between these it is interpolated. Source of the third: Yoon et al. 2023, "Diffusion Probabilistic Models
# Generalize when They Fail to Memorize".
NOVELTY_MULTIPLES = (1, 2, 4)
COPIED_FRACTION = 1 / 3


@dataclass
class GroupEvaluation:
    """What is known of the `n` networks of a group.

    Args:
        val_score, test_score (`torch.Tensor` of shape `(n,)`): Accuracies, or other scores, of every network.
        test_nll, test_ece, iou_max (`torch.Tensor` of shape `(n,)`, *optional*): Of classifications, negative
            log-likelihood, calibration error, and IoU of wrong predictions with the most similar original.
        iou_nearest (`torch.Tensor` of shape `(n,)`, *optional*): Which original that is, where there is any other.
        l2_nearest (`torch.Tensor` of shape `(n,)`): Euclidean distance to the nearest original.
        l2_independent (`torch.Tensor` of shape `(m,)`, *optional*): Of originals only, the same to the nearest
            independent one, where there is one.
        cosine_nearest (`torch.Tensor` of shape `(n,)`): Largest cosine similarity to an original.
        l2_matched (`torch.Tensor` of shape `(n,)`, *optional*): `l2_nearest` after permutation matching.
        selected (`int`): The network with the best validation score (of accuracies, ties: the lowest validation NLL).
        n_effective (`float`): How many independent networks they count as.
        score_ci95 (`list[float]`, *optional*): 95 % interval of the mean test score.
        difference_to_original ([`Difference`]): Mean test score minus that of the originals.

    For originals, similarity is to the other originals (leave-one-out).
    """

    val_score: torch.Tensor
    test_score: torch.Tensor
    test_nll: torch.Tensor | None
    test_ece: torch.Tensor | None
    iou_max: torch.Tensor | None
    iou_nearest: torch.Tensor | None
    l2_nearest: torch.Tensor
    l2_independent: torch.Tensor | None
    cosine_nearest: torch.Tensor
    l2_matched: torch.Tensor | None
    selected: int
    n_effective: float
    score_ci95: list[float] | None
    difference_to_original: Difference


def summarize_group(
    name: str,
    group: GroupEvaluation,
    original: GroupEvaluation,
    scores: torch.Tensor,
    *,
    metric: Metric,
    losses: torch.Tensor | None,
    iou: torch.Tensor | None,
    spread: float | None,
    seconds: float | None,
    chosen: Mapping[str, Any] | None = None,
) -> GroupMetrics:
    """Make the entry of a group in `metrics.json`; numbers that do not exist are `None`.

    Args:
        group ([`GroupEvaluation`]): Its `n` networks.
        original ([`GroupEvaluation`]): The originals, which set the yardstick.
        scores (`torch.Tensor` of shape `(n, N)`): What test examples add to a network's score: of the accuracy, 1
            where it is right.
        metric ([`Metric`]): What the scores are.
        losses (`torch.Tensor` of shape `(n, N)`, *optional*): Negative log-likelihoods of the test labels.
        iou (`torch.Tensor` of shape `(n, n)`, *optional*): IoU of wrong predictions within the group.
        spread (`float`, *optional*): Distance to the originals' mean, in units of the originals' own.
        seconds (`float`, *optional*): What making the networks took.
        chosen (`Mapping`, *optional*): What was chosen for the whole group on validation examples.
    """
    n, n_effective = len(scores), group.n_effective
    yardstick, usual = original.l2_independent.double().mean(), original.l2_nearest.double().mean()
    distances = group.l2_nearest.double()
    worth, usual_worth = (metric.worth(found.test_score.double()) for found in (group, original))
    performant = worth >= usual_worth.mean()
    novel = {f"{m}x": distances > m * yardstick for m in NOVELTY_MULTIPLES}
    joint = {key: is_novel & performant for key, is_novel in novel.items()}
    similarity = {
        "iou_max_mean": group.iou_max,
        "l2_nearest_mean": group.l2_nearest,
        "l2_independent_mean": group.l2_independent,
        "cosine_nearest_mean": group.cosine_nearest,
        "l2_matched_mean": group.l2_matched,
    }
    similarity = {key: values for key, values in similarity.items() if values is not None}
    within = torch.tensor(torch.nan)
    if n > 1 and iou is not None:
        within = (iou.double().sum() - iou.double().trace()) / (n * (n - 1))
    difference = group.difference_to_original
    gain = metric.worth(difference.difference)
    mean = Mean(**_summary(group.test_score), ci95=group.score_ci95)
    if metric.is_accuracy:
        nll_ci95 = mean_interval(losses, n_effective) if losses.isfinite().all() else None
        judged = {
            "test_accuracy": mean,
            "test_nll": Mean(**_summary(group.test_nll), ci95=nll_ci95),
            "test_ece": Mean(**_summary(group.test_ece), ci95=sample_mean_interval(group.test_ece, n_effective)),
        }
    else:
        judged = {"test_score": mean}
    return GroupMetrics(
        n=n,
        n_effective=n_effective,
        **judged,
        difference_to_original=difference,
        selected=_selected(group, scores[group.selected], metric),
        similarity=Similarity(
            iou_mean=_finite(within),
            **{key: _finite(values.double().mean()) for key, values in similarity.items()},
            l2_nearest_min=_finite(group.l2_nearest.min()),
            ci95=SimilarityIntervals(
                **{key: sample_mean_interval(values, n_effective) for key, values in similarity.items()}
            ),
        ),
        spread=spread,
        novel_and_performant=Shares(
            performant=_share(performant),
            novel={key: _share(values) for key, values in novel.items()},
            joint={key: _share(values) for key, values in joint.items()},
            copied=_share((distances <= COPIED_FRACTION * usual) & usual.isfinite()),
            ci95=ShareIntervals(
                performant=_share_interval(performant, n_effective),
                novel={key: _share_interval(values, n_effective) for key, values in novel.items()},
                joint={key: _share_interval(values, n_effective) for key, values in joint.items()},
            ),
        ),
        cost=Cost(seconds=seconds, gain_per_second=gain / seconds if seconds else None),
        **({"chosen": dict(chosen)} if chosen else {}),
        **describe_group(name),
    )


def _selected(group: GroupEvaluation, scores: torch.Tensor, metric: Metric) -> Selected:
    """The selected network of a group, by its scores `(N,)`."""
    row = group.selected
    val, test = group.val_score[row].item(), group.test_score[row].item()
    if metric.is_accuracy:
        interval = exact_interval(scores.sum().item(), len(scores))
        return Selected(index=row, val_accuracy=val, test_accuracy=test, test_ci95=interval)
    return Selected(index=row, val_score=val, test_score=test, test_ci95=mean_interval(scores[None]))


def _share(values: torch.Tensor) -> float:
    return values.double().mean().item()


def _share_interval(values: torch.Tensor, n_effective: float) -> list[float]:
    return exact_interval(_share(values) * n_effective, n_effective)


def _finite(value: torch.Tensor) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value.item() if value.isfinite() else None


def _summary(values: torch.Tensor) -> dict[str, float | None]:
    values = values.double()
    statistics = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    return {name: _finite(value) for name, value in statistics.items()}


def aggregate_seeds(runs: Mapping[int, Metrics]) -> Metrics:
    """Aggregate the metrics of several seeds into those of all of them.

    Every number becomes its mean over the seeds, every interval that of this mean by Student's t, and the verdict is
    made anew from these. `seeds` are the seeds; `per_seed` stands beside each mean and difference.

    Raises:
        ValueError: fewer than two runs, or runs of different tasks or groups.
    """
    values = list(runs.values())
    if len(values) < 2:
        raise ValueError(f"expected the runs of at least 2 seeds, found {len(values)}.")
    for key in ("num_parameters", "num_test"):
        if len(found := {getattr(value, key) for value in values}) > 1:
            raise ValueError(f"expected runs of the same recipe, found {key} {sorted(found)}.")
    metrics = Metrics.from_dict({**_aggregate([value.to_dict() for value in values]), "schema": SCHEMA})
    metrics.seeds = list(runs)
    for name, group in metrics.groups.items():
        # Runs of 0.1 say it of none of their groups.
        for key, value in describe_group(name).items():
            if getattr(group, key) is None:
                setattr(group, key, value)
    for name, population in metrics.population.items():
        each = [value.population[name].to_dict() for value in values]
        keys = [key for key, found in each[0].items() if isinstance(found, int | float)]
        population.per_seed = {key: [found.get(key) for found in each] for key in keys}
        population.finding = None if name == "original" else population_finding(population)
    if metrics.tasks is None:
        metrics.finding, metrics.verdict = make_verdict(metrics)
    else:
        metrics.tasks = average_seeds([value.tasks for value in values])
        metrics.finding, metrics.verdict = tasks_verdict(metrics.tasks)
    return metrics


def _aggregate(values: Sequence):
    if any(value is None for value in values):
        return None
    first = values[0]
    if isinstance(first, Mapping):
        keys = [key for key in first if key not in LEFT_OUT and all(key in value for value in values)]
        result = {key: _aggregate([value[key] for value in values]) for key in keys}
        for center, interval in CENTERS:
            if center in result and interval in first:
                per_seed = [value[center] for value in values]
                result |= {interval: _interval(per_seed), "per_seed": per_seed}
        if isinstance(first.get("ci95"), Mapping):
            result["ci95"] = _intervals(values, first["ci95"])
        return result
    if isinstance(first, int | float) and not isinstance(first, bool):
        mean = sum(values) / len(values)
        return int(mean) if all(isinstance(value, int) and value == mean for value in values) else mean
    return first if all(value == first for value in values) else None


def _intervals(values: Sequence[Mapping], names: Mapping) -> dict:
    """Intervals of the values whose names are the keys of `names`, at any depth."""
    return {
        name: _intervals([value[name] for value in values], inner)
        if isinstance(inner, Mapping)
        else _interval([value[name] for value in values])
        for name, inner in names.items()
    }


def _interval(per_seed: Sequence[float | None]) -> list[float] | None:
    if any(value is None for value in per_seed):
        return None
    return sample_mean_interval(torch.tensor(per_seed, dtype=torch.float64))
