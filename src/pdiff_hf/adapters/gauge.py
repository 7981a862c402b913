"""The gauge of LoRA: `(BG, G⁻¹A)` is the same adapter as `(B, A)`, and one of them stands for all.

Factors are canonical when they come from the singular value decomposition BA = U S Vᵀ as B = U √S and A = √S Vᵀ, with
singular values in descending order, and signs by a rule: the sum of the cubes of a column of U and of V together is
not negative. Source: QR and SVD of the factors as in Weight2Token (2603.15990); the sign rule is ours.

Singular vectors of two adapters that differ by little may be in another order, and turn where singular values are
nearly equal. So the factors of a collection are then turned together, `(BR, RᵀA)` with R orthogonal, as near as
possible to those of one reference, the mean of what is turned to it: turned to any single adapter, they are farther
apart than singular vectors (`benchmarks/adapter_gauge.py`). That is still a function of the products BA alone.
Source of R: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem"; of the mean: Gower 1975,
"Generalized Procrustes analysis".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..layout import ParameterLayout, TensorSpec

FACTOR_A = re.compile(r"\.lora_((?:embedding_)?)A\.")
# Singular values below this share of the largest one are rounding, whose vectors are arbitrary.
ROUNDING = 1e-7
# Values of rows that are brought into form at a time: double precision and its products stay in the cache.
BLOCK = 2**18
# The mean of so many adapters, of so many values together, is hardly another one than that of all; after so many
# rounds it stays.
NUM_AVERAGED, AVERAGED_VALUES = 64, 2**25
ROUNDS = 5


@dataclass(frozen=True)
class LoraPair:
    """Two factors with a gauge.

    Args:
        layer (`str`): Name of the layer in the network.
        a ([`TensorSpec`]): A, `(r, in, …)`.
        b ([`TensorSpec`]): B, `(out, r / groups, …)`.
    """

    layer: str
    a: TensorSpec
    b: TensorSpec

    @property
    def groups(self) -> int:
        """Of a grouped convolution, whose A is whole and whose B is cut; 1 otherwise."""
        return self.a.shape[0] // self.b.shape[1]

    def factors(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of B `(n, groups, out / groups, r / groups)` and A `(n, groups, r / groups, in)` in rows `(n, D)`."""
        groups = self.groups
        a = rows[:, self.a.offset : self.a.offset + self.a.numel]
        b = rows[:, self.b.offset : self.b.offset + self.b.numel]
        rank = self.a.shape[0] // groups
        return b.unflatten(1, (groups, -1, rank)), a.unflatten(1, (groups, rank, -1))


def lora_pairs(layout: ParameterLayout) -> list[LoraPair]:
    """The factors of a layout that have a gauge, in the order of their A."""
    specs = {spec.name: spec for spec in layout.tensors if spec.transform == "canonical_lora"}
    found = []
    for name, spec in specs.items():
        if (match := FACTOR_A.search(name)) is not None:
            other = FACTOR_A.sub(r".lora_\1B.", name)
            if other not in specs:
                raise ValueError(f"layout: tensor {name!r} is canonical without its other factor {other!r}.")
            found.append(LoraPair(name[: match.start()], spec, specs[other]))
    return found


@torch.no_grad()
def canonical_rows(layout: ParameterLayout, rows: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
    """Rows `(n, D)` with canonical factors, float32; all else is as it was. Rows without factors are returned as such.

    BA is that of the rows up to their rounding: everything is computed in double precision.

    Args:
        layout ([`ParameterLayout`]): Which factors belong together.
        rows (`torch.Tensor` of shape `(n, D)`): The adapters.
        reference (`torch.Tensor` of shape `(D,)`, *optional*): What they are turned to, an adapter that adds
            something; singular vectors stay as they are without it.
    """
    pairs = lora_pairs(layout)
    if not pairs or not len(rows):
        return rows
    found = rows.clone()
    by_shape: dict[tuple, list[LoraPair]] = defaultdict(list)
    for pair in pairs:
        by_shape[pair.groups, pair.a.shape[0], pair.a.numel, pair.b.numel].append(pair)
    references = {}
    if reference is not None:
        for shape, alike in by_shape.items():
            own = zip(*(pair.factors(reference[None].double()) for pair in alike), strict=True)
            references[shape] = canonical_factors(*map(torch.stack, own))
    for block in found.split(max(1, BLOCK // layout.num_parameters)):
        for shape, alike in by_shape.items():
            factors = [pair.factors(block) for pair in alike]
            b, a = canonical_factors(*(torch.stack(parts).double() for parts in zip(*factors, strict=True)))
            if reference is not None:
                b, a = turned_factors(b, a, *references[shape])
            for (target_b, target_a), own_b, own_a in zip(factors, b, a, strict=True):
                target_b.copy_(own_b)
                target_a.copy_(own_a)
    return found


def num_averaged(layout: ParameterLayout) -> int:
    """How many adapters [`mean_adapter`] takes, of a collection of many."""
    return max(1, min(NUM_AVERAGED, AVERAGED_VALUES // layout.num_parameters))


def mean_adapter(layout: ParameterLayout, rows: torch.Tensor) -> torch.Tensor:
    """The adapter `(D,)` that those of a collection `(n, D)` are turned to: the mean of the first, turned to it."""
    rows = rows[: num_averaged(layout)]
    reference = rows[0]
    for _ in range(ROUNDS):
        reference = canonical_rows(layout, rows, reference).mean(0)
    return reference


def canonical_factors(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The canonical form of B `(…, out, r)` and A `(…, r, in)`, of the same shapes and type."""
    rank = a.shape[-2]
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    u, v = q_b @ u, q_a @ vh.mT
    sign = torch.where((u**3).sum(-2) + (v**3).sum(-2) < 0, -1.0, 1.0)
    # Vectors of what is zero are arbitrary.
    root = torch.where(s > ROUNDING * s[..., :1], s, 0.0).sqrt()
    new_b, new_a = u * (root * sign).unsqueeze(-2), (v * (root * sign).unsqueeze(-2)).mT
    # Ranks above the width of the matrix have no singular value.
    missing = rank - root.shape[-1]
    return torch.nn.functional.pad(new_b, (0, missing)), torch.nn.functional.pad(new_a, (0, 0, 0, missing))


def turned_factors(
    b: torch.Tensor, a: torch.Tensor, b_0: torch.Tensor, a_0: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors B `(…, out, r)` and A `(…, r, in)`, turned as near as possible to others, of shapes that broadcast."""
    u, _, vh = torch.linalg.svd(b.mT @ b_0 + a @ a_0.mT)
    turn = u @ vh
    return b @ turn, turn.mT @ a


def delta_weights(layout: ParameterLayout, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What the factors of rows `(n, D)` multiply to, layer by layer: BA `(n, groups, out / groups, in)`, unscaled."""
    for pair in lora_pairs(layout):
        b, a = pair.factors(rows)
        yield pair.layer, b @ a


def singular_values(layout: ParameterLayout, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Singular values of BA of canonical rows `(n, D)`, layer by layer: `(n, groups, r / groups)`, descending."""
    for pair in lora_pairs(layout):
        b, _ = pair.factors(rows)
        # Turned or not, BᵀB has them as eigenvalues.
        yield pair.layer, torch.linalg.eigvalsh(b.double().mT @ b.double()).flip(-1).clamp_min(0)


def near_equal(layout: ParameterLayout, rows: torch.Tensor, tolerance: float = 0.01) -> dict[str, float]:
    """By layer, the share of rows with two neighbouring singular values within a relative `tolerance`.

    There the canonical vectors turn into one another, and equal adapters may have other rows.
    """
    found = {}
    for layer, values in singular_values(layout, rows):
        first, second = values[..., :-1], values[..., 1:]
        close = (second > ROUNDING * values[..., :1]) & (first - second < tolerance * first)
        found[layer] = close.flatten(1).any(1).double().mean().item()
    return found
