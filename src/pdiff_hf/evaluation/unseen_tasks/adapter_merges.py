"""Adapters for unseen tasks that are merged of those of seen ones, by what they add: no generator, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ...adapters.gauge import LoraPair, canonical_rows, lora_pairs
from ...layout import ParameterLayout
from ..merging.checkpoints import DENSITIES, TaskVectors, merged_dare, merged_ties
from .networks import TaskNetworks
from .regressions import PENALTIES, nearest_seen, ridge
from .weights import TEMPERATURES, Make

# Of a difference that was merged by TIES or DARE.
SCALES = (1.0, 1.5, 2.0)
# Subsets (T, C) → weights of the K adapters seen (T, K).
Weigh = Callable[[torch.Tensor], torch.Tensor]


def adapter_merges(
    layout: ParameterLayout, seen: TaskNetworks, start: torch.Tensor, seed: int = 0
) -> dict[str, Iterator[Make]]:
    """By way the merges of which the best on validation tasks is taken; none where rows have no factors with a gauge.

    `…_svd` are sums of what the adapters add, at the rank of one: means of those of the nearest tasks, weighted by
    distance, and weighted as ridge regression makes the subset of those seen. TIES and DARE take the nearest ones.

    Args:
        layout ([`ParameterLayout`]): Of the rows.
        seen ([`TaskNetworks`]): The adapters.
        start (`torch.Tensor` of shape `(D,)`): Where the trainings began; of it, all but the factors is taken.
        seed (`int`, *optional*, defaults to 0): Of what DARE drops.
    """
    if not (pairs := lora_pairs(layout)):
        return {}
    merger = _DeltaMerger(layout, pairs, seen.vectors[:])
    return {
        "merge_nearest_svd": iter([partial(merger.merge, _weigh_nearest(seen))]),
        "merge_weighted_svd": (partial(merger.merge, weigh) for weigh in _weigh_all(seen)),
        "merge_ridge_svd": (partial(merger.merge, weigh) for weigh in _weigh_by_ridge(seen)),
        "merge_ties": _of_differences(layout, seen, start, merged_ties),
        "merge_dare": _of_differences(
            layout, seen, start, lambda *args: merged_dare(*args, torch.Generator().manual_seed(seed))
        ),
    }


class _DeltaMerger:
    """Weighted sums of BA of K adapters, cut to the rank of one: Eckart and Young 1936, as PEFT's `svd`."""

    def __init__(self, layout: ParameterLayout, pairs: list[LoraPair], rows: torch.Tensor):
        self._layout, self._rows, self._pairs = layout, rows, pairs
        # Of the factors of all side by side, orthonormal bases and what they are in these, by layer.
        self._bases = []
        for pair in pairs:
            b, a = (factor.double() for factor in pair.factors(rows))
            q_b, r_b = torch.linalg.qr(b.permute(1, 2, 0, 3).flatten(2))
            q_a, r_a = torch.linalg.qr(a.transpose(0, 1).flatten(1, 2).mT)
            self._bases.append((q_b, r_b, q_a, r_a))

    def merge(self, weigh: Weigh, wanted: torch.Tensor) -> torch.Tensor:
        """Rows `(T, D)` for subsets `(T, C)`; all but the factors is summed with the same weights."""
        weights = weigh(wanted).double()
        found = (weights @ self._rows.double()).float()
        for pair, (q_b, r_b, q_a, r_a) in zip(self._pairs, self._bases, strict=True):
            target_b, target_a = pair.factors(found)
            rank = target_a.shape[-2]
            for row, own in enumerate(weights):
                # Within the bases: a column of a factor has its adapter's weight.
                inner = (r_b * own.repeat_interleave(rank)) @ r_a.mT
                _, vectors = torch.linalg.eigh(inner.mT @ inner)
                kept = vectors[..., -rank:]
                missing = rank - kept.shape[-1]
                b, a = q_b @ (inner @ kept), (q_a @ kept).mT
                target_b[row] = torch.nn.functional.pad(b, (0, missing))
                target_a[row] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        return canonical_rows(self._layout, found)


def _weigh_nearest(seen: TaskNetworks) -> Weigh:
    def weigh(wanted: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(len(wanted), len(seen.conditions), dtype=torch.float64)
        for row, nearest in zip(weights, nearest_seen(seen.conditions, wanted), strict=True):
            row[nearest] = 1 / len(nearest)
        return weights

    return weigh


def _weigh_all(seen: TaskNetworks) -> Iterator[Weigh]:
    for temperature in TEMPERATURES:
        yield lambda wanted, own=temperature: (-torch.cdist(wanted, seen.conditions, p=1) / own).softmax(1)


def _weigh_by_ridge(seen: TaskNetworks) -> Iterator[Weigh]:
    # A regression is a sum of its targets: with one target for each adapter, their weights.
    targets = torch.eye(len(seen.conditions))
    for penalty in PENALTIES:
        yield ridge(seen.conditions, targets, penalty, False)


def _of_differences(
    layout: ParameterLayout,
    seen: TaskNetworks,
    start: torch.Tensor,
    merge: Callable[[TaskVectors, float], torch.Tensor],
) -> Iterator[Make]:
    """Of the nearest adapters' factors, and of all else their differences from `start`."""
    begin = start.clone()
    for pair in lora_pairs(layout):
        for spec in (pair.a, pair.b):
            begin[spec.offset : spec.offset + spec.numel] = 0

    def make(density: float, scale: float, wanted: torch.Tensor) -> torch.Tensor:
        made = []
        for nearest in nearest_seen(seen.conditions, wanted):
            vectors = TaskVectors(seen.vectors[nearest], layout, begin[None])
            made.append(vectors.networks(merge(vectors, density), [scale])[:])
        return torch.cat(made)

    for density in DENSITIES:
        for scale in SCALES:
            yield partial(make, density, scale)
