"""Distances between networks that do not count the order of their hidden units.

Permuting the units of a hidden layer changes a parameter vector and not what the network computes. Source: Entezari et
al. 2022, arXiv 2110.06296; Ainsworth et al. 2023, "Git Re-Basin", arXiv 2209.04836.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ..layout import ParameterLayout
from .similarity import nearest_distance, squared_distances

# Float64 values of the networks that are matched at once, 2 MB: more would leave the processor's caches.
CHUNK_VALUES = 2**18
# Originals that a network is matched with: so many of the nearest as they are, and of the nearest in a common order.
NUM_CANDIDATES = 5
# Descent ends by itself, after about 3 rounds; every round is an improvement.
MAX_ROUNDS = 100

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout)
# Of feature maps (B, C, H, W), for every channel alike.
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d)


@dataclass(frozen=True)
class PermutedTensor:
    """A tensor that is permuted with hidden units, seen as `(outputs, inputs, values)`.

    Args:
        offset (`int`): Position of its first value in the vector.
        shape (`tuple[int, int, int]`): Outputs, inputs, and the values that stay together.
        output (`int`, *optional*): The hidden layer whose units are its outputs.
        input (`int`, *optional*): The hidden layer whose units are its inputs.
    """

    offset: int
    shape: tuple[int, int, int]
    output: int | None
    input: int | None = None

    def view(self, vectors: torch.Tensor) -> torch.Tensor:
        """Its values in vectors `(n, D)`, as a view `(n, outputs, inputs, values)`."""
        return vectors[:, self.offset :][:, : torch.Size(self.shape).numel()].view(-1, *self.shape)


@dataclass(frozen=True)
class PermutationSpec:
    """How the hidden units of a network may be permuted.

    Args:
        num_parameters (`int`): Length D of a vector.
        num_layers (`int`): Number of hidden layers.
        tensors (`tuple[PermutedTensor, ...]`): What is permuted with their units.
    """

    num_parameters: int
    num_layers: int
    tensors: tuple[PermutedTensor, ...]


def find_permutations(model: nn.Module, layout: ParameterLayout) -> PermutationSpec | None:
    """Find the hidden layers of an image classifier whose units may be permuted.

    Known are chains (`nn.Sequential`, possibly nested) of convolutions without groups, one `nn.Flatten` and linear
    layers, with element-wise activations, pooling, dropout and BatchNorm between them.

    Args:
        model (`nn.Module`): The base model.
        layout ([`ParameterLayout`]): Which tensors the vectors hold.

    Returns:
        [`PermutationSpec`], or `None` for any other model, for one without hidden layers, and when a tensor of its
        layers is not in the layout, so that it cannot be permuted.
    """
    modules = list(_chain("", model))
    weighted = [name for name, module in modules if type(module) in WEIGHTED]
    specs = {spec.name: spec for spec in layout.tensors}
    tensors: list[PermutedTensor] = []
    is_flat = False
    # The hidden layer before a module and its number of units; none before the first layer and after the last.
    hidden, units = None, 1
    for name, module in modules:
        own = dict(module.named_parameters())
        own |= {key: buffer for key, buffer in module.named_buffers() if buffer.is_floating_point()}
        own = {key: specs.get(f"{name}.{key}") for key in own}
        if None in own.values():
            return None
        if type(module) in WEIGHTED:
            # Reparametrised layers, as with weight_norm, have other tensors.
            if is_flat != (type(module) is nn.Linear) or not set(own) <= {"weight", "bias"}:
                return None
            if (not is_flat and module.groups > 1) or module.weight.shape[1] % units:
                return None
            layer = None if name == weighted[-1] else 0 if hidden is None else hidden + 1
            outputs = len(module.weight)
            # After flattening, every unit has as many columns as its feature map has values.
            weight = (outputs, units, own["weight"].numel // (outputs * units))
            tensors.append(PermutedTensor(own["weight"].offset, weight, layer, hidden))
            hidden, units = layer, 1 if layer is None else outputs
            own = {key: spec for key, spec in own.items() if key == "bias"}
        elif type(module) in NORMS:
            if is_flat != (type(module) is nn.BatchNorm1d) or module.num_features % units:
                return None
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            is_flat = True
        elif type(module) not in ELEMENTWISE and (is_flat or type(module) not in POOLING):
            return None
        if hidden is not None:
            shapes = {key: (units, 1, spec.numel // units) for key, spec in own.items()}
            tensors += [PermutedTensor(own[key].offset, shape, hidden) for key, shape in shapes.items()]
    if len(weighted) < 2:
        return None
    return PermutationSpec(layout.num_parameters, len(weighted) - 1, tuple(tensors))


def match(vectors: torch.Tensor, reference: torch.Tensor, spec: PermutationSpec) -> torch.Tensor:
    """Permute the hidden units of networks so that they come close to a reference.

    Weight matching by coordinate descent: from the order as it is, the units of one layer after the other get the
    order that is best given the others, until no layer gets better. The exact problem is NP-hard. Source: Ainsworth et
    al. 2023, arXiv 2209.04836, §3.2.

    Args:
        vectors (`torch.Tensor` of shape `(A, D)`): Parameter vectors.
        reference (`torch.Tensor` of shape `(D,)`): What they are matched with.
        spec ([`PermutationSpec`]): Of [`find_permutations`].

    Returns:
        `torch.Tensor` of shape `(A, D)`: networks that compute the same, none farther from the reference than before;
        those with values that are not finite stay as they are.

    Raises:
        ValueError: vectors of another length than the specification's.
    """
    pairs = _pair_chunks(vectors, reference.expand_as(vectors), spec)
    return torch.cat([_descend(*pair, spec).to(vectors.dtype) for pair in pairs])


def nearest_matched_distance(
    a: torch.Tensor, b: torch.Tensor, spec: PermutationSpec, exclude_self: bool = False
) -> torch.Tensor:
    """Euclidean distance from every row of `a` to the nearest row of `b` after permutation matching.

    An upper bound of the true distance, and never above [`nearest_distance`]: matching is approximate, and only a few
    rows of `b` are tried, the `NUM_CANDIDATES` nearest as they are and the `NUM_CANDIDATES` nearest after all networks
    were matched with the first row of `b`.

    Args:
        a (`torch.Tensor` of shape `(A, D)`): Parameter vectors.
        b (`torch.Tensor` of shape `(B, D)`): Parameter vectors.
        spec ([`PermutationSpec`]): Of [`find_permutations`].
        exclude_self (`bool`, *optional*, defaults to `False`): As for [`nearest_distance`].

    Returns:
        `torch.Tensor` of shape `(A,)`: distances in parameter units, infinite when no row of `b` is left.

    Raises:
        ValueError: vectors of another length than the specification's, or `exclude_self` with two sets.
    """
    nearest = nearest_distance(a, b, exclude_self)
    num = min(NUM_CANDIDATES, len(b) - exclude_self)
    if num < 1:
        return nearest
    frames = ((a, b), (_align(a, b[0], spec), _align(b, b[0], spec)))
    for left, right in frames:
        candidates = squared_distances(left, right, exclude_self).topk(num, largest=False).indices
        pairs = _pair_chunks(left.repeat_interleave(num, 0), right[candidates.flatten()], spec)
        distances = torch.cat([(_descend(*pair, spec) - pair[1]).norm(dim=1) for pair in pairs])
        nearest = torch.minimum(nearest, distances.view(-1, num).min(1).values.float())
    return nearest


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested `nn.Sequential` in the order in which they run."""
    if type(module) is not nn.Sequential:
        yield name, module
        return
    # Not `named_children`, which skips modules that run twice.
    for key, child in module._modules.items():
        yield from _chain(f"{name}.{key}".lstrip("."), child)


def _pair_chunks(
    vectors: torch.Tensor, references: torch.Tensor, spec: PermutationSpec
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some rows of both in float64, as many at a time as fit into `CHUNK_VALUES`."""
    if vectors.ndim != 2 or vectors.shape[1] != spec.num_parameters:
        raise ValueError(f"expected vectors (A, {spec.num_parameters}), found {tuple(vectors.shape)}")
    size = max(1, CHUNK_VALUES // spec.num_parameters)
    for chunk, reference in zip(vectors.split(size), references.split(size), strict=True):
        # A copy, which callers may permute in place.
        yield chunk.to(torch.float64, copy=True), reference.double()


def _align(vectors: torch.Tensor, reference: torch.Tensor, spec: PermutationSpec) -> torch.Tensor:
    """Match networks `(n, D)` with one reference `(D,)`, with a result that their present order does not influence.

    Before the descent, one layer after the other is ordered by what its units get from the layer before, which undoes
    any permutation of the reference.
    """
    chunks = []
    for chunk, references in _pair_chunks(vectors, reference.expand_as(vectors), spec):
        for layer in range(spec.num_layers):
            incoming = [tensor for tensor in spec.tensors if tensor.output == layer]
            order = _best_order(_products(chunk, references, layer, incoming))
            _permute(chunk, order, layer, spec)
        chunks.append(_descend(chunk, references, spec).to(vectors.dtype))
    return torch.cat(chunks)


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
