"""Similarity of networks, in the mistakes they make and in their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..models.normalizer import ParameterNormalizer

# Float64 values of one column block of the distance computation: 128 MB for both operands.
BLOCK_VALUES = 2**23


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


def nearest_distance(
    a: torch.Tensor, b: torch.Tensor, exclude_self: bool = False, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """Euclidean distance from every row of `a` `(A, D)` to the nearest row of `b` `(B, D)`, in parameter units.

    `exclude_self` leaves row `i` of `b` out for row `i` of `a`, for leave-one-out distances within one set;
    `excluded`, `bool` `(A, B)`, any others. Of shape `(A,)`, infinite where no row of `b` is left.
    """
    squares = squared_distances(a, b, exclude_self)
    if excluded is not None:
        squares = squares.masked_fill(excluded.to(squares.device), float("inf"))
    if squares.shape[1] == 0:
        return squares.new_full((len(a),), float("inf"), dtype=torch.float32)
    least, nearest = squares.min(1)
    pairs = zip(a, nearest, strict=True)
    distances = torch.stack([torch.linalg.vector_norm(row.double() - b[index]) for row, index in pairs]).float()
    return distances.masked_fill(least.isinf().to(distances.device), float("inf"))


def nearest_cosine(a: torch.Tensor, b: torch.Tensor, exclude_self: bool = False) -> torch.Tensor:
    """Largest cosine similarity `(A,)` of every row of `a` `(A, D)` to a row of `b` `(B, D)`, of the raw vectors.

    In [-1, 1], 0 for a vector of zeros, NaN when no row of `b` is left; `exclude_self` as for [`nearest_distance`].
    """
    _check_pair(a, b, exclude_self)
    if len(b) - exclude_self < 1:
        return a.new_full((len(a),), float("nan"), dtype=torch.float32)
    products = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    squares_a, squares_b = products.new_zeros(len(a), 1), products.new_zeros(len(b))
    for block_a, block_b in column_blocks(a, b):
        products += block_a @ block_b.T
        squares_a += block_a.square().sum(1, keepdim=True)
        squares_b += block_b.square().sum(1)
    norms = (squares_a * squares_b).sqrt()
    cosines = torch.where(norms == 0, 0.0, products / norms).clamp(-1, 1)
    if exclude_self:
        cosines.fill_diagonal_(-float("inf"))
    return cosines.max(1).values.float()


def spread(a: torch.Tensor, originals: torch.Tensor) -> float | None:
    """Root mean square distance of vectors `(A, D)` to the mean of the originals `(K, D)`, in units of the originals'.

    1 for vectors as spread out as the originals, `1 / sqrt(n)` for averages of `n` independent ones, 0 for the mean
    itself; `None` where there is no finite value, as for originals that are all equal.
    """
    _check_pair(a, originals)
    own = reference = 0.0
    for block_a, block_originals in column_blocks(a, originals):
        mean = block_originals.mean(0)
        own += (block_a - mean).square().sum().item() / len(a)
        reference += (block_originals - mean).square().sum().item() / len(originals)
    ratio = math.sqrt(own / reference) if reference else math.nan
    return ratio if math.isfinite(ratio) else None


def squared_distances(a: torch.Tensor, b: torch.Tensor, exclude_self: bool = False) -> torch.Tensor:
    """Squared Euclidean distances `(A, B)` in float64, infinite on the diagonal with `exclude_self`.

    For ranking: of two rows that are equal or nearly so, the distance has the rounding errors of their norms.
    """
    _check_pair(a, b, exclude_self)
    squares = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for block_a, block_b in column_blocks(a, b):
        # Centred, because a² + b² - 2ab cancels when rows lie far from the origin and close to each other.
        center = block_b.mean(0)
        block_a, block_b = block_a - center, block_b - center
        squares += block_a.square().sum(1)[:, None] + block_b.square().sum(1) - 2 * block_a @ block_b.T
    return squares.fill_diagonal_(float("inf")) if exclude_self else squares


def _check_pair(a: torch.Tensor, b: torch.Tensor, exclude_self: bool = False) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected vectors (A, D) and (B, D), found {tuple(a.shape)} and {tuple(b.shape)}")
    if exclude_self and a.shape != b.shape:
        raise ValueError(
            f"exclude_self compares a set with itself, found {tuple(a.shape)} and {tuple(b.shape)}; pass the set twice"
        )


def column_blocks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same columns of both in float64, as many at a time as fit into `BLOCK_VALUES`."""
    width = max(1, BLOCK_VALUES // max(len(a), len(b), 1))
    for block_a, block_b in zip(a.split(width, 1), b.split(width, 1), strict=True):
        yield block_a.double(), block_b.double()


def gram_matrix(vectors: torch.Tensor, normalizer: ParameterNormalizer) -> torch.Tensor:
    """Inner products `(K, K)` of normalised and centred rows in float64, a block of columns at a time."""
    return gram_matrices(vectors, normalizer, torch.zeros(vectors.shape[1], dtype=torch.uint8))[0]


def gram_matrices(vectors: torch.Tensor, normalizer: ParameterNormalizer, groups: torch.Tensor) -> torch.Tensor:
    """Inner products `(G, K, K)` as [`gram_matrix`], of the columns of every group apart.

    `groups` `(D,)` is the group of each column; the sum over the groups is the matrix of all columns.
    """
    shape = (int(groups.max()) + 1, len(vectors), len(vectors))
    grams = torch.zeros(shape, dtype=torch.float64, device=vectors.device)
    width = max(1, 2 * BLOCK_VALUES // len(vectors))
    for start in range(0, vectors.shape[1], width):
        block = normalizer.normalize(vectors[:, start : start + width], start).double()
        block -= block.mean(0)
        of_block = groups[start : start + width]
        for group in of_block.unique().tolist():
            part = block[:, of_block == group]
            grams[group] += part @ part.T
    return grams
