"""What accuracies on unseen tasks come to: means, intervals over groups of tasks, recovered shares, differences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...results.records import Interval
from ...results.tasks import TaskResults
from ..intervals import sample_mean_interval

# Mean over seeds of the generator.
AVERAGED = ("seconds", "disagreement", "diversity_ratio", "near", "side", "copies")


def over_pairs(values: torch.Tensor | Sequence[float], pairs: torch.Tensor) -> torch.Tensor:
    """Means over the tasks of every group {S, complement} `(P,)`, of one number a task `(T,)`."""
    values = torch.as_tensor(values, dtype=torch.float64)
    sums = torch.zeros(int(pairs.max()) + 1, dtype=torch.float64).index_add_(0, pairs, values)
    return sums / torch.bincount(pairs)


def mean_and_interval(values: torch.Tensor) -> tuple[float, Interval | None]:
    """Of numbers of groups `(P,)`, by Student's t."""
    return values.mean().item(), sample_mean_interval(values)


def recovered_share(
    own: torch.Tensor, oracle: torch.Tensor, majority: torch.Tensor
) -> tuple[float | None, Interval | None]:
    """(own − majority) / (oracle − majority) of accuracies of groups `(P,)`; `None` without anything learned.

    It is a ratio of means. Its interval is that of the mean of a - r b over the mean of b, of accuracies minus
    majority a and oracle minus majority b of every group and the ratio r (the delta method).
    """
    reach = oracle - majority
    if reach.mean() <= 0:
        return None, None
    ratio = ((own - majority).mean() / reach.mean()).item()
    interval = sample_mean_interval((own - majority - ratio * reach) / reach.mean())
    return ratio, interval and [ratio + end for end in interval]


def summarize(results: TaskResults) -> TaskResults:
    """Fill in what follows from the accuracies of every task, in place; returns the results."""
    pairs = torch.tensor(results.pairs)
    by_pair = {name: over_pairs(group.accuracies, pairs) for name, group in results.unseen.items()}
    oracle, majority, generated = (by_pair[name] for name in ("oracle", "majority", "generated"))
    ensembles = {name: over_pairs(own.ensembles, pairs) for name, own in results.unseen.items() if own.ensembles}
    for name, group in results.unseen.items():
        own = by_pair[name]
        group.accuracy, group.ci95 = mean_and_interval(own)
        group.worst = min(group.accuracies)
        group.recovered, group.recovered_ci95 = recovered_share(own, oracle, majority)
        if name != "generated":
            group.difference, group.difference_ci95 = mean_and_interval(generated - own)
        if name in ensembles:
            group.ensemble = ensembles[name].mean().item()
        if name in ensembles and name != "oracle" and "oracle" in ensembles:
            found = mean_and_interval(ensembles[name] - ensembles["oracle"])
            group.ensemble_difference, group.ensemble_difference_ci95 = found
    return results


def average_seeds(runs: Sequence[TaskResults]) -> TaskResults:
    """The results of several seeds of the generator together: accuracies are averaged task by task.

    Intervals stay over groups of tasks. What is no accuracy is averaged as well.

    Raises:
        ValueError: the runs have other unseen tasks, or other ways.
    """
    first = runs[0]
    for run in runs[1:]:
        if (run.names, list(run.unseen)) != (first.names, list(first.unseen)):
            raise ValueError(
                "expected runs with the same unseen tasks and ways, found others; give the same collect section."
            )
    together = first.model_copy(deep=True)
    for name, group in together.unseen.items():
        own = [run.unseen[name] for run in runs]
        for key in ("accuracies", "ensembles"):
            values = [getattr(found, key) for found in own]
            if None not in values:
                setattr(group, key, [sum(task) / len(task) for task in zip(*values, strict=True)])
        for key in AVERAGED:
            values = [getattr(found, key) for found in own]
            setattr(group, key, None if None in values else sum(values) / len(values))
        group.per_seed = [found.accuracy for found in own]
    return summarize(together)
