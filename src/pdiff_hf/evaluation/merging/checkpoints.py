"""Merges of full checkpoints: task arithmetic, TIES, DARE, SLERP and model stock, tensor by tensor.

Task vectors are differences from a base: from where all trainings began, if that is known, and else from the mean of
the checkpoints. Tensors with the `log` transform are merged in log space, so that variances stay positive. Densities
and scales are chosen on validation examples. TIES and DARE are made of the parts that peft has of them, so that no
other library is needed; a checkpoint at a time is taken apart, and sums are over blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ...data.vectors import Vectors, column_slices, empty_vectors, row_slices
from ...layout import ParameterLayout, TensorSpec
from ..baselines import BLOCK_VALUES, draw_pairs, log_tensors

# Shares of the values of a task vector that are kept; Source: 0.2 of TIES (arXiv 2306.01708, §5); 0.1 of DARE
# (arXiv 2311.03099, §4).
DENSITIES = (0.1, 0.2, 0.5)
# What a merged task vector is multiplied by.
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
# Angles below this (in radians) are none: their sine is rounding, and the arc is a line.
SMALL_ANGLE = 1e-4

Worth = Callable[[Vectors], torch.Tensor]


class TaskVectors:
    """Checkpoints `(K, D)` as differences from a base.

    Args:
        originals (`Vectors` of shape `(K, D)`): The checkpoints.
        layout ([`ParameterLayout`]): Which slice of a vector is which tensor.
        start (`torch.Tensor` of shape `(1, D)`, *optional*): Where all of them began; their mean by default.
    """

    def __init__(self, originals: Vectors, layout: ParameterLayout, start: torch.Tensor | None = None):
        self.originals, self.layout, self.is_relative_to_mean = originals, layout, start is None
        self._base = torch.empty(1, originals.shape[1], dtype=originals.dtype, device=originals.device)
        for columns in column_slices(*originals.shape, BLOCK_VALUES):
            values = originals[:, columns] if start is None else start[:, columns].to(self._base)
            self._base[:, columns] = log_tensors(values, layout, torch.log, columns).double().mean(0)

    @property
    def base_name(self) -> str:
        """What the differences are from."""
        return "mean" if self.is_relative_to_mean else "start"

    @property
    def tensors(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Those that have values, and their columns."""
        return ((spec, slice(spec.offset, spec.offset + spec.numel)) for spec in self.layout.tensors if spec.numel)

    def rows(self, rows: slice, columns: slice) -> torch.Tensor:
        """Differences of some checkpoints in some columns."""
        values = log_tensors(self.originals[rows, columns], self.layout, torch.log, columns)
        return values - self._base[:, columns]

    def empty(self) -> torch.Tensor:
        """Room for a difference `(D,)`."""
        return torch.empty_like(self._base[0])

    def mean(self) -> torch.Tensor:
        """The mean difference `(D,)`."""
        found = self.empty()
        for columns in column_slices(*self.originals.shape, BLOCK_VALUES):
            found[columns] = self.rows(slice(None), columns).double().mean(0)
        return found

    def networks(self, difference: torch.Tensor, scales: Iterable[float]) -> Vectors:
        """Networks `(n, D)`: the base and a difference `(D,)`, multiplied by each of the `scales`."""
        scales = list(scales)
        found = empty_vectors(len(scales), self.originals)
        for row, scale in enumerate(scales):
            for columns in column_slices(1, self._base.shape[1], BLOCK_VALUES):
                values = self._base[:, columns] + scale * difference[None, columns]
                found[row : row + 1, columns] = log_tensors(values, self.layout, torch.exp, columns)
        return found


def task_arithmetic(vectors: TaskVectors, worth: Worth) -> tuple[torch.Tensor, dict[str, Any]]:
    """The base and the mean of the task vectors, multiplied by the scale that is best on validation examples.

    Source: Ilharco et al. 2023, arXiv 2212.04089, §2, whose λ is the scale over the number of task vectors. Returns
    the network `(1, D)`, and what was chosen.
    """
    return _best(vectors, [({}, vectors.mean())], worth)


def ties(vectors: TaskVectors, worth: Worth) -> tuple[torch.Tensor, dict[str, Any]]:
    """TIES: of every task vector the largest values, of these the mean of those that have the majority's sign.

    Density and scale are the best on validation examples. Source: Yadav et al. 2023, arXiv 2306.01708, §4; trimmed
    tensor by tensor, as in peft. Returns the network `(1, D)`, and what was chosen.
    """
    return _best(vectors, (({"density": density}, merged_ties(vectors, density)) for density in DENSITIES), worth)


def dare(vectors: TaskVectors, worth: Worth, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """DARE: the mean of task vectors of which random values are dropped, and the others divided by the density.

    Density and scale are the best on validation examples. Source: Yu et al. 2024, arXiv 2311.03099, §3. Returns the
    network `(1, D)`, and what was chosen.
    """
    return _best(
        vectors, (({"density": density}, merged_dare(vectors, density, generator)) for density in DENSITIES), worth
    )


def merged_ties(vectors: TaskVectors, density: float) -> torch.Tensor:
    """The merged task vector `(D,)` of TIES, not scaled."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, magnitude_based_pruning

    num, found = len(vectors.originals), vectors.empty()
    for spec, own in vectors.tensors:
        trimmed = empty_vectors(num, torch.empty(0, spec.numel, dtype=found.dtype, device=found.device))
        for row in range(num):
            difference = vectors.rows(slice(row, row + 1), own)[0]
            trimmed[row : row + 1, :] = magnitude_based_pruning(difference, density)[None]
        for columns in column_slices(num, spec.numel, BLOCK_VALUES):
            values = trimmed[:, columns]
            # Zeros are of no sign, so that what was trimmed plays no part.
            merged = disjoint_merge(values, calculate_majority_sign_mask(values))
            found[own.start + columns.start : own.start + columns.stop] = merged
    return found


def merged_dare(vectors: TaskVectors, density: float, generator: torch.Generator) -> torch.Tensor:
    """The merged task vector `(D,)` of DARE, not scaled."""
    from peft.utils.merge_utils import random_pruning

    num, total = len(vectors.originals), torch.zeros_like(vectors.empty(), dtype=torch.float64)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    devices = [total.device] if total.device.type == "cuda" else []
    # peft draws from the generator of all.
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for _, own in vectors.tensors:
            for row in range(num):
                difference = vectors.rows(slice(row, row + 1), own)[0]
                total[own] += random_pruning(difference, density, rescale=True)
    return (total / num).to(vectors.originals.dtype)


def slerp(originals: Vectors, layout: ParameterLayout, num: int, generator: torch.Generator) -> Vectors:
    """Points on the arcs between two different random originals each, uniform in the angle, `(num, D)`.

    Pairs and places are those of [`interpolations`], on whose segments they would be. Tensor by tensor,
    `(sin((1 - t)Ω) a + sin(tΩ) b) / sin Ω`, Ω the angle between a and b. Source: Shoemake 1985, "Animating rotation
    with quaternion curves", §3.
    """
    networks = empty_vectors(num, originals)
    if len(originals) < 2:
        networks[:] = originals[:1].repeat(num, 1)
        return networks
    pairs, places = draw_pairs(len(originals), num, generator)
    for spec in (spec for spec in layout.tensors if spec.numel):
        own = slice(spec.offset, spec.offset + spec.numel)
        for rows in row_slices(num, spec.numel, BLOCK_VALUES):
            first, second = (originals[pairs[rows, side].to(originals.device), own] for side in range(2))
            networks[rows, own] = on_arc(first, second, places[rows].to(first))
    return networks


def on_arc(first: torch.Tensor, second: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Points `(n, w)` at `places` `(n, 1)` in [0, 1] on the arcs from `first` to `second`, both `(n, w)`."""
    a, b = (values.double() for values in (first, second))
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)
    cosine = ((a * b).sum(1, keepdim=True) / lengths.clamp(min=1e-300)).clamp(-1, 1)
    angle, places = cosine.acos(), places.double()
    # No arc is the shortest between opposite directions, and none is defined for zeros.
    is_line = (angle < SMALL_ANGLE) | (torch.pi - angle < SMALL_ANGLE) | (lengths == 0)
    sine = torch.where(is_line, 1.0, angle.sin())
    left = torch.where(is_line, 1 - places, ((1 - places) * angle).sin() / sine)
    right = torch.where(is_line, places, (places * angle).sin() / sine)
    return (left * a + right * b).to(first.dtype)


def model_stock(vectors: TaskVectors) -> torch.Tensor:
    """Tensor by tensor, the point between start and mean that is nearest to the middle of all such checkpoints.

    `t · mean + (1 - t) · start`, `t = K cos θ / (1 + (K - 1) cos θ)`, for two checkpoints `2 cos θ / (1 + cos θ)`; θ
    is the angle between two task vectors, cos θ the mean over all pairs, and none is below 0. Source: Jang et al.
    2024, arXiv 2403.19522, §4. Returns the network `(1, D)`.
    """
    num, mean = len(vectors.originals), vectors.mean()
    for spec, own in vectors.tensors:
        blocks = [
            slice(own.start + columns.start, own.start + columns.stop)
            for columns in column_slices(num, spec.numel, BLOCK_VALUES)
        ]
        squares = sum(vectors.rows(slice(None), columns).double().square().sum(1) for columns in blocks)
        lengths = squares.sqrt()
        moved = lengths > 0
        count = int(moved.sum())
        if count < 2:
            continue
        # The sum of K unit vectors has K + (sum of the cosines of all pairs, both ways) as its square.
        units = torch.where(moved, 1 / lengths.clamp(min=1e-300), 0.0)
        total = sum((units @ vectors.rows(slice(None), columns).double()).square().sum() for columns in blocks)
        cosine = ((total - count) / (count * (count - 1))).clamp(0, 1)
        mean[own] *= (num * cosine / (1 + (num - 1) * cosine)).to(mean.dtype)
    return vectors.networks(mean, [1.0])[:]


def _best(
    vectors: TaskVectors, candidates: Iterable[tuple[dict[str, Any], torch.Tensor]], worth: Worth
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Of merged task vectors and [`SCALES`], the network `(1, D)` that is worth most, and what it is; ties: the first.

    A scale of 1 comes first, and others have to be better.
    """
    scales = sorted(SCALES, key=lambda scale: abs(scale - 1))
    found, chosen, most = None, {}, None
    for settings, difference in candidates:
        networks = vectors.networks(difference, scales)
        values = worth(networks).double().nan_to_num(nan=-torch.inf)
        best = int((values == values.max()).nonzero()[0])
        if found is None or values[best] > most:
            found, most = networks[best : best + 1], values[best]
            chosen = {**settings, "scale": scales[best], "base": vectors.base_name}
    return found, chosen
