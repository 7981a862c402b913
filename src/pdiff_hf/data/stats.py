"""What `stats.json` says of the rows of a parameter dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import ParameterLayout
from .shards import read_rows

# Values that are taken at a time, in float64.
BLOCK_VALUES = 2**20


def compute_stats(files: Sequence[Path], layout: ParameterLayout, metrics: Sequence[str]) -> dict[str, Any]:
    """Rows, runs, and mean and spread of metrics and tensors of shards, in bounded memory.

    Means and sums of squared deviations of blocks are merged without loss of precision.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    num_rows, runs = 0, {}
    values: dict[str, list[float]] = {name: [] for name in metrics}
    counts, means, squares = (np.zeros(len(layout.tensors)) for _ in range(3))
    for table in (table for file in files for table in read_rows(file, layout)):
        num_rows += len(table)
        runs |= dict.fromkeys(table.column("run").to_pylist())
        for name in metrics:
            values[name] += table.column(name).drop_null().to_pylist()
        for chunk in table.column("parameters").chunks:
            vectors = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), layout.num_parameters)
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
        "num_rows": num_rows,
        "runs": list(runs),
        "columns": {
            name: {"mean": float(np.mean(v)), "std": float(np.std(v)), "min": min(v), "max": max(v)}
            for name, v in values.items()
            if v
        },
        # Pooled over the tensor's elements and the checkpoints.
        "tensors": [
            {"name": spec.name, "mean": float(mean), "std": float(np.sqrt(square / max(1, count)))}
            for spec, count, mean, square in zip(layout.tensors, counts, means, squares, strict=True)
        ],
    }
