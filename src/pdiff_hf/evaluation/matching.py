"""Hidden units in the same order: matching networks, and distances that do not count the order.

Permuting the units of a hidden layer changes a parameter vector and not what the network computes. Source: Entezari et
al. 2022, arXiv 2110.06296; Ainsworth et al. 2023, "Git Re-Basin", arXiv 2209.04836.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from scipy.optimize import linear_sum_assignment

from ..data.vectors import Vectors, column_slices, empty_vectors
from .permutations import PermutationSpec, PermutedTensor
from .similarity import nearest_distance, squared_distances

# Every round brings the networks closer to their mean, so it ends; for 400 small perceptrons after some 40 rounds.
MAX_ALIGNMENT_ROUNDS = 200

# Float64 values of the networks that are matched at once, 2 MB: more would leave the processor's caches.
CHUNK_VALUES = 2**18
# Values of all networks at a time, of which the mean is taken.
MEAN_VALUES = 2**24
# Originals that a network is matched with: so many of the nearest as they are, and of the nearest in a common order.
NUM_CANDIDATES = 5
# Descent ends by itself, after about 3 rounds; every round is an improvement.
MAX_ROUNDS = 100


def match(vectors: Vectors, reference: torch.Tensor, spec: PermutationSpec) -> Vectors:
    """Permute the hidden units of networks `(A, D)` so that they come close to a reference `(D,)`.

    Weight matching by coordinate descent: from the order as it is, the units of one layer after the other get the
    order that is best given the others, until no layer gets better. The exact problem is NP-hard. Source: Ainsworth et
    al. 2023, arXiv 2209.04836, §3.2.

    Returns:
        `Vectors` of shape `(A, D)`: networks that compute the same, none farther from the reference than before; those
        with values that are not finite stay as they are.

    Raises:
        ValueError: vectors of another length than the specification's.
    """
    matched = empty_vectors(len(vectors), vectors)
    for rows, *pair in _pairs_with(vectors, reference, spec):
        matched[rows] = _descend(*pair, spec).to(vectors.dtype)
    return matched


def align(vectors: Vectors, reference: torch.Tensor, spec: PermutationSpec) -> Vectors:
    """Match networks with one reference as [`match`] does, without an influence of the order in which their units are.

    Before the descent, one layer after the other is ordered by what its units get from the layer before, which undoes
    any permutation of the reference.
    """
    aligned = empty_vectors(len(vectors), vectors)
    for rows, chunk, references in _pairs_with(vectors, reference, spec):
        for layer in range(spec.num_layers):
            incoming = [tensor for tensor in spec.tensors if tensor.output == layer]
            order = _best_order(_products(chunk, references, layer, incoming))
            _permute(chunk, order, layer, spec)
        aligned[rows] = _descend(chunk, references, spec).to(vectors.dtype)
    return aligned


def nearest_matched_distance(
    a: Vectors,
    b: Vectors,
    spec: PermutationSpec,
    exclude_self: bool = False,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Euclidean distance from every row of `a` to the nearest row of `b` after permutation matching.

    An upper bound of the true distance, and never above [`nearest_distance`]: matching is approximate, and only a few
    rows of `b` are tried, the `NUM_CANDIDATES` nearest as they are and the `NUM_CANDIDATES` nearest after all networks
    were matched with the first row of `b`.

    Arguments and result are those of [`nearest_distance`]; units are matched where `a` is.

    Raises:
        ValueError: vectors of another length than the specification's, or `exclude_self` with two sets.
    """
    nearest = nearest_distance(a, b, exclude_self, device=device)
    num = min(NUM_CANDIDATES, len(b) - exclude_self)
    if num < 1:
        return nearest
    first = b[:1][0]
    for left, right in ((a, b), (align(a, first, spec), align(b, first, spec))):
        candidates = squared_distances(left, right, exclude_self, device).topk(num, largest=False).indices.flatten()
        rows = torch.arange(len(left), device=candidates.device).repeat_interleave(num)
        pairs = _pairs(left, right, rows, candidates, spec)
        distances = torch.cat([(_descend(*pair, spec) - pair[1]).norm(dim=1) for pair in pairs])
        nearest = torch.minimum(nearest, distances.view(-1, num).min(1).values.float())
    return nearest


def _pairs(
    left: Vectors, right: Vectors, rows: torch.Tensor, others: torch.Tensor, spec: PermutationSpec
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some rows of the left and others of the right in float64, as many at a time as fit into `CHUNK_VALUES`."""
    if left.ndim != 2 or left.shape[1] != spec.num_parameters:
        raise ValueError(f"expected vectors (A, {spec.num_parameters}), found {tuple(left.shape)}")
    size = max(1, CHUNK_VALUES // spec.num_parameters)
    for own, other in zip(rows.split(size), others.split(size), strict=True):
        yield left[own].double(), right[other].double()


def _pairs_with(
    vectors: Vectors, reference: torch.Tensor, spec: PermutationSpec
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows, and [`_pairs`] of them with one reference `(D,)`."""
    rows = torch.arange(len(vectors), device=vectors.device)
    pairs = _pairs(vectors, reference[None], rows, torch.zeros_like(rows), spec)
    start = 0
    for own, references in pairs:
        yield rows[start : start + len(own)], own, references
        start += len(own)


def _descend(vectors: torch.Tensor, references: torch.Tensor, spec: PermutationSpec) -> torch.Tensor:
    """Coordinate descent over the hidden layers of networks `(n, D)`, each towards its own reference."""
    matched, vectors = vectors.clone(), vectors.clone()
    rows = torch.arange(len(vectors), device=vectors.device)
    for _ in range(MAX_ROUNDS):
        rounding = 1e-12 * vectors.norm(dim=1) * references.norm(dim=1)
        changed = torch.zeros_like(rounding, dtype=torch.bool)
        for layer in range(spec.num_layers):
            products = _products(vectors, references, layer, spec.tensors)
            order = _best_order(products)
            gain = products.gather(2, order[..., None]).sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
            better = gain > rounding
            if better.any():
                improved = vectors[better]
                _permute(improved, order[better], layer, spec)
                vectors[better] = improved
                changed |= better
        # Those without a change have arrived.
        rows, vectors, references = rows[changed], vectors[changed], references[changed]
        if not len(rows):
            break
        matched[rows] = vectors
    return matched


def _products(
    vectors: torch.Tensor, references: torch.Tensor, layer: int, tensors: Sequence[PermutedTensor]
) -> torch.Tensor:
    """Inner products `(n, units, units)` of the references' units of a layer (rows) and the networks' (columns).

    Their sum over an assignment of units decides, since the norms of both networks are given.
    """
    total = 0.0
    for tensor in tensors:
        ours, theirs = tensor.view(vectors), tensor.view(references)
        if tensor.output == layer:
            total = total + theirs.flatten(2) @ ours.flatten(2).mT
        if tensor.input == layer:
            total = total + theirs.transpose(1, 2).flatten(2) @ ours.transpose(1, 2).flatten(2).mT
    return total


def _best_order(products: torch.Tensor) -> torch.Tensor:
    """For every unit of the references the unit that takes its place, `(n, units)`."""
    units = torch.arange(products.shape[1], device=products.device)
    # NaN and infinity have no order.
    is_finite = products.isfinite().all(2).all(1)
    order = torch.where(is_finite[:, None], products.argmax(2), units)
    # Where all units have different favourites, as usual for networks of one run, these are the best assignment.
    is_open = (order.sort(1).values != units).any(1)
    for row in is_open.nonzero()[:, 0]:
        order[row] = torch.from_numpy(linear_sum_assignment(products[row].cpu().numpy(), maximize=True)[1])
    return order


def _permute(vectors: torch.Tensor, order: torch.Tensor, layer: int, spec: PermutationSpec) -> None:
    """Give the units of a layer another order `(n, units)`, in place."""
    for tensor in spec.tensors:
        view = tensor.view(vectors)
        if tensor.output == layer:
            view.copy_(view.gather(1, order[:, :, None, None].expand_as(view)))
        if tensor.input == layer:
            view.copy_(view.gather(2, order[:, None, :, None].expand_as(view)))


def align_networks(vectors: Vectors, spec: PermutationSpec) -> Vectors:
    """Permute the hidden units of networks so that they come close to each other, without changing what they compute.

    All are matched with the first one, then with the mean of all, until no unit changes its place. Matching by
    weights: Ainsworth et al. 2023, arXiv 2209.04836, §3.2; that the mean of all takes the place of one network is the
    simplest of their ways to merge many. Another order of the units of the first network only permutes the result in
    the same way; another order of any other network changes nothing.

    Returns:
        `Vectors`: networks `(K, D)`, each with the values of its row in another order.

    Raises:
        ValueError: vectors of another length than the specification's.
    """
    aligned = align(vectors, vectors[:1][0], spec)
    blocks = [*column_slices(*vectors.shape, MEAN_VALUES)]
    for _ in range(MAX_ALIGNMENT_ROUNDS):
        moved = match(aligned, torch.cat([aligned[:, columns].double().mean(0) for columns in blocks]), spec)
        if all(torch.equal(moved[:, columns], aligned[:, columns]) for columns in blocks):
            break
        aligned = moved
    return aligned
