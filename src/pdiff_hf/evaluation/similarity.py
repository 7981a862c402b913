"""Similarity of networks, in the mistakes they make and in their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..data.vectors import Vectors, column_slices
from ..machine import float64_device
from ..models.normalizer import ParameterNormalizer

# Float64 values of one column block of the distance computation, 16 MB: larger ones, which an allocator takes from the
# system anew every time, take five times as long.
BLOCK_VALUES = 2**21


def wrong_iou(wrong_a: torch.Tensor, wrong_b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of the wrongly classified examples of every pair of networks.

    `|wrong_a and wrong_b| / |wrong_a or wrong_b|`, 1 for two networks that make no mistakes. Source: Wang et al. 2024,
    arXiv 2402.13144, §4. Which examples are wrong, `bool` `(A, N)` and `(B, N)`, gives `(A, B)` values in [0, 1].
    """
    if wrong_a.shape[1:] != wrong_b.shape[1:]:
        raise ValueError(
            f"expected mistakes (A, N) and (B, N) on the same examples, found {tuple(wrong_a.shape)} and "
            f"{tuple(wrong_b.shape)}"
        )
    # Counts up to 2**24 are exact in float32.
    wrong_a, wrong_b = wrong_a.float(), wrong_b.float()
    intersection = wrong_a @ wrong_b.T
    union = wrong_a.sum(1)[:, None] + wrong_b.sum(1) - intersection
    return torch.where(union == 0, 1.0, intersection / union)


@dataclass(frozen=True)
class Nearness:
    """How near vectors `(A, D)` are to originals `(K, D)`.

    Args:
        distance (`torch.Tensor` of shape `(A,)`): To the nearest original, see [`nearest_distance`].
        cosine (`torch.Tensor` of shape `(A,)`): Largest cosine similarity to an original, of the raw vectors. In
            [-1, 1], 0 for a vector of zeros, NaN when there is no (other) original.
        spread (`float`, *optional*): Root mean square distance to the mean of the originals, in units of the
            originals' own: 1 for vectors as spread out as they are, `1 / sqrt(n)` for averages of `n` independent
            ones, 0 for the mean itself; `None` where there is no finite value, as for originals that are all equal.
    """

    distance: torch.Tensor
    cosine: torch.Tensor
    spread: float | None


def measure_nearness(
    a: Vectors, originals: Vectors, exclude_self: bool = False, device: torch.device | str | None = None
) -> Nearness:
    """[`Nearness`] of vectors `(A, D)` to originals `(K, D)`, in two passes; arguments as of [`nearest_distance`]."""
    _check_pair(a, originals, exclude_self)
    squares = products = squares_a = squares_b = own = reference = 0.0
    for block_a, block_b in column_blocks(a, originals, device):
        products += block_a @ block_b.T
        squares_a += block_a.square().sum(1, keepdim=True)
        squares_b += block_b.square().sum(1)
        block_a, block_b = _centred(block_a, block_b)
        squares += _squares(block_a, block_b)
        own += block_a.square().sum() / len(a)
        reference += block_b.square().sum() / len(originals)
    norms = (squares_a * squares_b).sqrt()
    cosines = torch.where(norms == 0, 0.0, products / norms).clamp(-1, 1)
    if exclude_self:
        squares.fill_diagonal_(math.inf)
        cosines.fill_diagonal_(-math.inf)
    largest = cosines.max(1).values.float() if len(originals) > exclude_self else torch.full((len(a),), math.nan)
    ratio = (own / reference).sqrt().item()
    return Nearness(
        _nearest(a, originals, squares, device), largest.to(a.device), ratio if math.isfinite(ratio) else None
    )


def nearest_distance(
    a: Vectors,
    b: Vectors,
    exclude_self: bool = False,
    excluded: torch.Tensor | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Euclidean distance from every row of `a` `(A, D)` to the nearest row of `b` `(B, D)`, in parameter units.

    `exclude_self` leaves row `i` of `b` out for row `i` of `a`, for leave-one-out distances within one set;
    `excluded`, `bool` `(A, B)`, any others. Of shape `(A,)`, infinite where no row of `b` is left.

    Columns are compared on `device`, where `a` is by default, as many at a time as fit into `BLOCK_VALUES`; the CPU
    stands in for a device without float64. The result is where `a` is.
    """
    squares = squared_distances(a, b, exclude_self, device)
    if excluded is not None:
        squares = squares.masked_fill(excluded.to(squares.device), math.inf)
    return _nearest(a, b, squares, device)


def _nearest(a: Vectors, b: Vectors, squares: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """The distances `(A,)` that [`squared_distances`] `(A, B)` say are the least, without their rounding errors."""
    if squares.shape[1] == 0:
        return torch.full((len(a),), math.inf)
    least, nearest = squares.min(1)
    exact = 0.0
    for block_a, block_b in column_blocks(a, b, device):
        exact += (block_a - block_b[nearest.to(block_b.device)]).square().sum(1)
    return exact.sqrt().float().to(a.device).masked_fill(least.isinf().to(a.device), math.inf)


def squared_distances(
    a: Vectors, b: Vectors, exclude_self: bool = False, device: torch.device | str | None = None
) -> torch.Tensor:
    """Squared Euclidean distances `(A, B)` in float64, infinite on the diagonal with `exclude_self`.

    For ranking: of two rows that are equal or nearly so, the distance has the rounding errors of their norms.
    """
    _check_pair(a, b, exclude_self)
    squares = sum(_squares(*_centred(*blocks)) for blocks in column_blocks(a, b, device))
    return (squares.fill_diagonal_(math.inf) if exclude_self else squares).to(a.device)


def _centred(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """About the mean of `b`, because a² + b² - 2ab cancels when rows lie far from the origin, close to each other."""
    center = b.mean(0)
    return a - center, b - center


def _squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T


def _check_pair(a: Vectors, b: Vectors, exclude_self: bool = False) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected vectors (A, D) and (B, D), found {tuple(a.shape)} and {tuple(b.shape)}")
    if exclude_self and a.shape != b.shape:
        raise ValueError(
            f"exclude_self compares a set with itself, found {tuple(a.shape)} and {tuple(b.shape)}; pass the set twice"
        )


def column_blocks(
    a: Vectors, b: Vectors, device: torch.device | str | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same columns of both in float64 on a device, that of `a` by default, as many as fit into `BLOCK_VALUES`."""
    device = float64_device(a.device if device is None else device)
    for columns in column_slices(max(len(a), len(b)), a.shape[1], BLOCK_VALUES):
        block = a[:, columns].to(device).double()
        yield block, block if b is a else b[:, columns].to(device).double()


def gram_matrix(vectors: Vectors, normalizer: ParameterNormalizer) -> torch.Tensor:
    """Inner products `(K, K)` of normalised and centred rows in float64, a block of columns at a time."""
    return gram_matrices(vectors, normalizer, torch.zeros(vectors.shape[1], dtype=torch.uint8))[0]


def gram_matrices(vectors: Vectors, normalizer: ParameterNormalizer, groups: torch.Tensor) -> torch.Tensor:
    """Inner products `(G, K, K)` as [`gram_matrix`], of the columns of every group apart.

    `groups` `(D,)` is the group of each column; the sum over the groups is the matrix of all columns. They are
    computed where the normaliser is, and are on the CPU.
    """
    device = normalizer.mean.device
    grams = torch.zeros(int(groups.max()) + 1, len(vectors), len(vectors), dtype=torch.float64)
    grams = grams.to(float64_device(device))
    for columns in column_slices(len(vectors), vectors.shape[1], BLOCK_VALUES):
        block = normalizer.normalize(vectors[:, columns].to(device), columns.start).to(grams.device).double()
        block -= block.mean(0)
        of_block = groups[columns]
        for group in of_block.unique().tolist():
            part = block[:, (of_block == group).to(block.device)]
            grams[group] += part @ part.T
    return grams.cpu()
