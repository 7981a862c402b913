"""Geometry of the rows of a parameter dataset: directions, distances, linear reconstruction."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..reconstruction import explained_by_kind
from ..similarity import squared_distances

NUM_COMPONENTS = (1, 2, 8, 32, 128)
# Eigenvalues below this part of the largest are rounding errors of float32 rows, as in `principal_components`.
ROUNDING = 1e-10


def thin_out(runs: Mapping[str, torch.Tensor], most: int) -> torch.Tensor:
    """About `most` rows of runs, every n-th of each in its order, ascending; all when there are no more."""
    every = -(-sum(map(len, runs.values())) // most)
    return torch.cat([rows[::every] for rows in runs.values()]).sort().values


def spectrum(gram: torch.Tensor) -> dict:
    """Effective rank and explained variance by the inner products `(K, K)` of centred rows.

    The effective rank is `exp(-Σ p log p)`, `p` the singular values of the centred rows divided by their sum. Source:
    Roy & Vetterli 2007, "The effective rank".

    Returns:
        `dict`: `rank`, `effective_rank`, `explained_variance` by number of components, and
        `num_components_99`, the fewest that explain 99 %; all 0 for rows that are all equal.
    """
    values = torch.linalg.eigvalsh(gram).flip(0)
    values = values[values > ROUNDING * values[0]]
    shares = values.cumsum(0) / values.sum()
    p = values.sqrt() / values.sqrt().sum()
    explained = {n: shares[min(n, len(values)) - 1].item() if len(values) else 0.0 for n in NUM_COMPONENTS}
    return {
        "rank": len(values),
        "effective_rank": torch.special.entr(p).sum().exp().item() if len(values) else 0.0,
        "explained_variance": {str(n): share for n, share in explained.items()},
        "num_components_99": int((shares < 0.99).sum()) + 1 if len(values) else 0,
    }


def linear_explained_variances(gram: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor) -> torch.Tensor | None:
    """Shares of the held-out rows' variance about the training rows' mean that the training rows' components hold.

    `gram` `(K, K)` are inner products about any centre, `train` and `heldout` indices or masks of rows.

    Returns:
        `torch.Tensor`, *optional*: by the number of components, `(rank,)`; `None` when all held-out rows equal the
        mean.
    """
    means = gram[:, train].mean(1)
    gram = gram - means - means[:, None] + means[train].mean()
    values, components = torch.linalg.eigh(gram[train][:, train])
    values, components = values.flip(0), components.flip(1)
    kept = values > ROUNDING * values[0]
    scores = gram[heldout][:, train] @ (components[:, kept] / values[kept].sqrt())
    total = gram.diagonal()[heldout].sum()
    return scores.square().sum(0).cumsum(0) / total if total > 0 else None


def linear_explained_variance(
    gram: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, num_components: int
) -> float | None:
    """That of so many components, or of all; 0 where the training rows have none."""
    shares = linear_explained_variances(gram, train, heldout)
    if shares is None:
        return None
    return shares[:num_components][-1].item() if len(shares) else 0.0


def linear_explained_by_kind(grams: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, num: int) -> dict | None:
    """What so many components of all coordinates explain, of each kind of tensor: see [`explained_by_kind`].

    `grams` `(kinds, K, K)` are inner products of the coordinates of every kind, `train` and `heldout` indices of rows.
    `None` when all held-out rows equal the mean.
    """
    means = grams[:, :, train].mean(2)
    grams = grams - means[:, :, None] - means[:, None, :] + means[:, train].mean(1)[:, None, None]
    gram = grams.sum(0)
    values, components = torch.linalg.eigh(gram[train][:, train])
    values, components = values.flip(0)[:num], components.flip(1)[:, :num]
    kept = values > ROUNDING * values[0]
    scaled = components[:, kept] / values[kept].sqrt()
    # Reconstructed rows are linear combinations of the training rows.
    weights = gram[heldout][:, train] @ scaled @ scaled.T
    total = grams[:, heldout, heldout].sum(1)
    crossed = (weights * grams[:, heldout][:, :, train]).sum((1, 2))
    squared = ((weights @ grams[:, train][:, :, train]) * weights).sum((1, 2))
    residual = (total - 2 * crossed + squared).clamp_min(0)
    return explained_by_kind(residual, total) if total.sum() > 0 else None


def nearest_distances(vectors: torch.Tensor, runs: torch.Tensor, device: torch.device | str | None = None) -> dict:
    """Euclidean distances of every raw row `(K, D)` to its nearest other row, and to its nearest row of another run.

    The matrix of them is computed on `device`, where the rows are by default.

    Returns:
        `dict`: quantiles `{"min", "q25", "median", "q75", "max"}` of `nearest` and `nearest_in_other_runs` (`None`
        for a single run), and `median_norm` of the rows.
    """
    squares = squared_distances(vectors, vectors, exclude_self=True, device=device)
    elsewhere = squares.masked_fill(runs[:, None] == runs, float("inf"))

    def quantiles(squares: torch.Tensor) -> dict[str, float]:
        pairs = zip(vectors, squares.argmin(1), strict=True)
        distances = torch.stack([torch.linalg.vector_norm(row.double() - vectors[nearest]) for row, nearest in pairs])
        levels = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
        return dict(zip(("min", "q25", "median", "q75", "max"), distances.quantile(levels).tolist(), strict=True))

    norms = torch.stack([torch.linalg.vector_norm(row.double()) for row in vectors])
    return {
        "nearest": quantiles(squares),
        "nearest_in_other_runs": quantiles(elsewhere) if len(runs.unique()) > 1 else None,
        "median_norm": norms.median().item(),
    }
