"""Which rows of a parameter dataset belong together: families by distance and barrier, and rows far from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.cluster.hierarchy import DisjointSet, fcluster, linkage
from scipy.spatial.distance import squareform

from ..evaluator import ParameterEvaluator
from ..similarity import squared_distances
from .functional import MAX_BARRIER, pair_barrier

# Nearest networks as far apart as this part of their norm are hardly of one training run.
MAX_RELATIVE_DISTANCE = 0.5
# Families are this much farther apart than the links within them; those nearer than `MAX_RELATIVE_DISTANCE` by more.
# Measured: along one run, in soups of one base model and among independent networks, the step is at most 2.5 where it
# leaves two groups, but 3.5 along one run of uneven steps, which is joined by their times alone; between fine-tunes of
# two initialisations, with rates from 0.001 to 0.01, it is 5.6.
MIN_GAP, MIN_NEAR_GAP = 3.0, 10.0
# The matrix of distances is 200 MB.
MAX_ROWS = 5000
# Between so many families, the barriers are measured.
MAX_MEASURED = 10
# Beside rows so many times as long as the others, distances between these would be rounding errors.
MAX_NORM = 1e3
# More rows than this part of all are no exceptions.
MAX_ALONE_SHARE = 0.1


def find_families(
    vectors: torch.Tensor,
    times: Sequence[Sequence[tuple[int, float]]],
    evaluator: ParameterEvaluator | None = None,
    device: torch.device | str | None = None,
) -> dict | None:
    """Groups of raw rows `(K, D)` that lie apart, by single linkage of their Euclidean distances.

    The cut is the lowest step of the linkage from which the next one is far. What follows one another along a run is
    no other family, unless it jumps: `times` are rows and steps (or epochs) of every run whose order is known. With
    an evaluator, families without a barrier between them are one. The distances are computed on `device`, where the
    rows are by default.

    Returns:
        `dict`, *optional*: `rows` (lists, of a single family when others stand alone), `alone`, the longest link
        `within` and the shortest `between` families, `barrier` (the lowest between them, `None` where it is not
        measured). `None` when all rows belong together, or none does.
    """
    if not 3 <= len(vectors) <= MAX_ROWS:
        return None
    norms = torch.stack([torch.linalg.vector_norm(row.double()) for row in vectors])
    usual = norms <= MAX_NORM * norms.median()
    if not usual.all():
        rows = (mask.nonzero()[:, 0].tolist() for mask in (usual, ~usual))
        return _beside(*rows, vectors, times, evaluator, device)
    distances = (
        squared_distances(vectors, vectors, device=device).double().clamp(min=0).sqrt().fill_diagonal_(0).numpy()
    )
    links = linkage(squareform(distances, checks=False), "single")
    heights, norm = links[:, 2], norms.median().item()
    # Exact copies, up to rounding, say nothing about how far apart networks are.
    cuts = [i for i in range(len(heights) - 1) if heights[i] > 1e-6 * norm]
    cut = next((i for i in cuts if heights[i + 1] > heights[i] * _min_gap(heights[i + 1], norm)), None)
    if cut is None:
        return None
    families = _groups(fcluster(links, heights[cut], "distance"))
    alone = [rows[0] for rows in families if len(rows) == 1]
    exceptions = set(alone if len(alone) <= max(1, MAX_ALONE_SHARE * len(vectors)) else ())
    joined = _along_runs(families, times, distances, exceptions)
    families, barrier = _by_barrier(joined, vectors, distances, evaluator)
    large = [rows for rows in families if len(rows) > 1]
    alone = sorted(rows[0] for rows in families if len(rows) == 1)
    if len(large) < 2 and not (large and alone and exceptions >= set(alone)):
        return None
    between = min(_nearest(a, b, distances)[0] for i, a in enumerate(families) for b in families[:i])
    return {
        "rows": large,
        "alone": alone,
        "within": float(heights[cut]),
        "between": float(between),
        "barrier": barrier,
    }


def _beside(
    usual: list[int],
    far: list[int],
    vectors: torch.Tensor,
    times: Sequence[Sequence[tuple[int, float]]],
    evaluator: ParameterEvaluator | None,
    device: torch.device | str | None,
) -> dict | None:
    """The families of the `usual` rows, beside which those that are `far` stand alone."""
    places = {row: place for place, row in enumerate(usual)}
    kept = [[(places[row], time) for row, time in run if row in places] for run in times]
    found = find_families(vectors[usual], kept, evaluator, device)
    between = min(torch.linalg.vector_norm(vectors[row].double() - vectors[usual[0]]).item() for row in far)
    if found is None:
        first = vectors[usual[0]].double()
        within = max(torch.linalg.vector_norm(vectors[row] - first).item() for row in usual)
        return {"rows": [usual], "alone": far, "within": within, "between": between, "barrier": None}
    return {
        **found,
        "rows": [[usual[row] for row in rows] for rows in found["rows"]],
        "alone": sorted([*(usual[row] for row in found["alone"]), *far]),
    }


def farthest_tensor(vectors: torch.Tensor, row: int, tensors: Mapping[str, slice]) -> str:
    """The tensor in which a row differs most from the median of all rows."""
    median = vectors.median(0).values
    return max(tensors, key=lambda name: (vectors[row] - median)[tensors[name]].double().square().sum().item())


def _min_gap(between: float, norm: float) -> float:
    return MIN_GAP if between > MAX_RELATIVE_DISTANCE * norm else MIN_NEAR_GAP


def _groups(labels: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    return list(groups.values())


def _nearest(a: Sequence[int], b: Sequence[int], distances: np.ndarray) -> tuple[float, int, int]:
    between = distances[np.ix_(a, b)]
    i, j = np.unravel_index(between.argmin(), between.shape)
    return between[i, j], a[i], b[j]


def _along_runs(
    families: list[list[int]], times: Sequence[Sequence[tuple[int, float]]], distances: np.ndarray, exceptions: set
) -> list[list[int]]:
    """Join what one run passes through: from row to row it goes no faster than elsewhere."""
    of_row = {row: number for number, rows in enumerate(families) for row in rows}
    sets = DisjointSet(range(len(families)))
    for run in times:
        ordered = sorted(((time, row) for row, time in run if row not in exceptions))
        steps = [
            (distances[first, second] / ((end - begin) or 1), of_row[first], of_row[second])
            for (begin, first), (end, second) in pairwise(ordered)
        ]
        inside = [speed for speed, a, b in steps if a == b or 1 in (len(families[a]), len(families[b]))]
        for speed, a, b in steps:
            if speed <= MIN_GAP * max(inside, default=0):
                sets.merge(a, b)
    return [sorted(row for number in subset for row in families[number]) for subset in sets.subsets()]


def _by_barrier(
    families: list[list[int]], vectors: torch.Tensor, distances: np.ndarray, evaluator: ParameterEvaluator | None
) -> tuple[list[list[int]], float | None]:
    """Join families between whose nearest rows there is no barrier; and the lowest of those that are left."""
    large = [rows for rows in families if len(rows) > 1]
    if evaluator is None or not 2 <= len(large) <= MAX_MEASURED:
        return families, None
    barriers = {}
    for i, a in enumerate(large):
        for j, b in enumerate(large[:i]):
            _, first, second = _nearest(a, b, distances)
            barriers[i, j] = pair_barrier(vectors[first], vectors[second], evaluator)
    sets = DisjointSet(range(len(large)))
    for (i, j), barrier in barriers.items():
        if barrier <= MAX_BARRIER:
            sets.merge(i, j)
    left = [barrier for (i, j), barrier in barriers.items() if not sets.connected(i, j)]
    joined = [sorted(row for number in subset for row in large[number]) for subset in sets.subsets()]
    return joined + [rows for rows in families if len(rows) == 1], min(left, default=None)
