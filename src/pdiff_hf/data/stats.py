"""Statistics of the rows of a parameter dataset, the content of `stats.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import ParameterLayout
from .integrity import describe_shard
from .shards import read_rows, vector_blocks

# Values that are taken at a time, in float64.
BLOCK_VALUES = 2**20


def compute_stats(files: Sequence[Path], layout: ParameterLayout, metrics: Sequence[str]) -> dict[str, Any]:
    """Rows, runs, and mean and spread of metrics and tensors of shards, in bounded memory.

    Means and sums of squared deviations of blocks are merged without loss of precision.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    runs: dict[str, None] = {}
    values: dict[str, list[float]] = {name: [] for name in metrics}
    counts, means, squares = (np.zeros(len(layout.tensors)) for _ in range(3))
    counted = dict.fromkeys(files, 0)
    for file, table in ((shard, table) for shard in files for table in read_rows(shard, layout)):
        counted[file] += len(table)
        runs |= dict.fromkeys(table.column("run").to_pylist())
        for name in metrics:
            values[name] += table.column(name).drop_null().to_pylist()
        for vectors in vector_blocks(table):
            for index, spec in enumerate(layout.tensors):
                width = max(1, BLOCK_VALUES // len(vectors))
                for start in range(spec.offset, spec.offset + spec.numel, width):
                    block = vectors[:, start : min(start + width, spec.offset + spec.numel)]
                    counts[index] += block.size
                    share = block.size / counts[index]
                    delta = block.mean(dtype=np.float64) - means[index]
                    means[index] += share * delta
                    squares[index] += block.var(dtype=np.float64) * block.size
                    squares[index] += delta**2 * (1 - share) * block.size
    return {
        "num_rows": sum(counted.values()),
        "runs": list(runs),
        "shards": [describe_shard(file, num_rows) for file, num_rows in counted.items()],
        "columns": {
            name: {"count": len(v), "mean": float(np.mean(v)), "std": float(np.std(v)), "min": min(v), "max": max(v)}
            for name, v in values.items()
            if v
        },
        # Pooled over the tensor's elements and the checkpoints.
        "tensors": [
            {"name": spec.name, "mean": float(mean), "std": float(np.sqrt(square / max(1, count)))}
            for spec, count, mean, square in zip(layout.tensors, counts, means, squares, strict=True)
        ],
    }


def merge_stats(first: Mapping[str, Any], second: Mapping[str, Any], layout: ParameterLayout) -> dict[str, Any]:
    """What [`compute_stats`] says of the rows of two datasets together, from what it said of each."""
    rows = first["num_rows"], second["num_rows"]
    columns = {}
    for name in {**first["columns"], **second["columns"]}:
        found = [stats["columns"].get(name) for stats in (first, second)]
        # Before counts were written, every row was taken to have the metric.
        parts = [{"count": count, **part} for part, count in zip(found, rows, strict=True) if part is not None]
        columns[name] = _pool(parts) | {"min": min(p["min"] for p in parts), "max": max(p["max"] for p in parts)}
    tensors = []
    for spec, *parts in zip(layout.tensors, first["tensors"], second["tensors"], strict=True):
        counted = [{"count": max(1, spec.numel) * count, **part} for part, count in zip(parts, rows, strict=True)]
        pooled = _pool(counted)
        tensors.append({"name": spec.name, "mean": pooled["mean"], "std": pooled["std"]})
    runs = list(dict.fromkeys([*first["runs"], *second["runs"]]))
    merged = {"num_rows": sum(rows), "runs": runs, "columns": columns, "tensors": tensors}
    # A list of some of them would say that the others do not belong to the dataset.
    listed = {} if "shards" not in first else {"shards": [*first["shards"], *second["shards"]]}
    return merged | listed


def _pool(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Count, mean and standard deviation of all values, from those of parts of them."""
    total = sum(part["count"] for part in parts)
    mean = sum(part["count"] * part["mean"] for part in parts) / total
    square = sum(part["count"] * (part["std"] ** 2 + (part["mean"] - mean) ** 2) for part in parts) / total
    return {"count": total, "mean": mean, "std": float(np.sqrt(square))}
