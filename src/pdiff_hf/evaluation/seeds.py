"""One result out of the runs of several seeds: means over the seeds, with intervals that know nothing of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .intervals import sample_mean_interval
from .verdict import make_verdict

# A value and the key of its interval beside it.
CENTERS = {"mean": "ci95", "difference": "ci95", "test_accuracy": "test_ci95"}
# These describe one run, or have no mean.
LEFT_OUT = ("p_value", "only_generated", "only_other", "index", "verdict", "finding", "ensembles", "seed")


def aggregate_seeds(runs: Mapping[int, Mapping]) -> dict:
    """Aggregate the `metrics.json` of several seeds into one of the same form.

    Every number becomes its mean over the seeds, every interval that of this mean by Student's t, and the verdict is
    made anew from these. `seeds` are the seeds; `per_seed` stands beside each mean and difference.

    Args:
        runs (`Mapping[int, Mapping]`): Content of `metrics.json` by seed; at least two.

    Raises:
        ValueError: fewer than two runs, or runs of different tasks or groups.
    """
    values = list(runs.values())
    if len(values) < 2:
        raise ValueError(f"expected the runs of at least 2 seeds, found {len(values)}.")
    for key in ("num_parameters", "num_test"):
        if len(found := {value[key] for value in values}) > 1:
            raise ValueError(f"expected runs of the same recipe, found {key} {sorted(found)}.")
    metrics = {**_aggregate(values), "schema": 1, "seeds": list(runs)}
    metrics["finding"], metrics["verdict"] = make_verdict(metrics)
    return metrics


def _aggregate(values: Sequence):
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, Mapping):
        keys = [key for key in first if key not in LEFT_OUT and all(key in value for value in values)]
        result = {key: _aggregate([value[key] for value in values]) for key in keys}
        for center, interval in CENTERS.items():
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
