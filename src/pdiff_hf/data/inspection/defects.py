"""What is wrong with the values of a parameter dataset: NaN, constants and copies."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

import torch

from ...layout import ParameterLayout

# Values of one column block, 64 MB in float32.
BLOCK_VALUES = 2**24


def find_non_finite(vectors: torch.Tensor, layout: ParameterLayout) -> tuple[torch.Tensor, dict[str, int]]:
    """Find NaN and infinite values.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`): Raw parameter values.
        layout ([`ParameterLayout`]): What a vector is made of.

    Returns:
        `tuple`: whether a row is finite, `bool` of shape `(K,)`; and for the tensors that are not, in how many rows.
    """
    # Sums are NaN or infinite wherever a value is, and a mask of all values would cost too much memory.
    finite = vectors.sum(1).isfinite()
    tensors: dict[str, int] = {}
    for row in (~finite).nonzero()[:, 0].tolist():
        broken = [name for name, value in layout.unflatten(vectors[row]).items() if not value.isfinite().all()]
        # Without such a value the sum has overflown.
        finite[row] = not broken
        tensors |= {name: tensors.get(name, 0) + 1 for name in broken}
    return finite, tensors


def find_copies(
    vectors: torch.Tensor, layout: ParameterLayout, runs: Mapping[str, torch.Tensor]
) -> tuple[dict, dict[str, dict]]:
    """Find constant tensors and coordinates, and exact copies of rows and of tensors.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`): Raw, finite parameter values.
        layout ([`ParameterLayout`]): What a vector is made of.
        runs (`Mapping[str, torch.Tensor]`): The rows of every run.

    Returns:
        `tuple[dict, dict[str, dict]]`: of the whole dataset and of every run `constant_tensors` (names),
        `num_constant_parameters` and `duplicate_rows` (lists of rows that are equal); of the dataset also
        `duplicate_tensors` (lists of names that are equal in every row and not constant). In a single row nothing is
        called constant.
    """
    names = [spec.name for spec in layout.tensors if spec.numel]
    digests: list[tuple[bytes, ...]] = []
    for row in vectors.contiguous().numpy():
        own = (row[spec.offset : spec.offset + spec.numel] for spec in layout.tensors if spec.numel)
        digests.append(tuple(hashlib.blake2b(values, digest_size=16).digest() for values in own))

    def describe(rows: torch.Tensor) -> dict:
        found = [digests[row] for row in rows.tolist()]
        columns = zip(names, zip(*found, strict=True), strict=True)
        constant = [name for name, column in columns if len(found) > 1 and len(set(column)) == 1]
        groups = _equal(dict(zip(rows.tolist(), found, strict=True)))
        return {"constant_tensors": constant, "num_constant_parameters": 0, "duplicate_rows": groups}

    everything = torch.arange(len(vectors))
    whole, of_runs = describe(everything), {run: describe(rows) for run, rows in runs.items()}
    columns = dict(zip(names, zip(*digests, strict=True), strict=True))
    whole["duplicate_tensors"] = _equal({n: c for n, c in columns.items() if n not in whole["constant_tensors"]})
    for block in vectors.split(max(1, BLOCK_VALUES // len(vectors)), 1):
        for entry, rows in [(whole, everything), *((of_runs[run], rows) for run, rows in runs.items())]:
            if len(rows) > 1:
                entry["num_constant_parameters"] += int((block[rows] == block[rows[0]]).all(0).sum())
    return whole, of_runs


def _equal(values: Mapping) -> list[list]:
    """Keys of equal values, in lists of two and more."""
    groups = defaultdict(list)
    for key, value in values.items():
        groups[value].append(key)
    return [keys for keys in groups.values() if len(keys) > 1]
