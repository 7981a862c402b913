"""Geometry of the rows of a parameter dataset: directions, memory along a run, distances, linear reconstruction."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...models.normalizer import ParameterNormalizer
from ..similarity import squared_distances

# Values of one column block, 128 MB in float64.
BLOCK_VALUES = 2**24
NUM_COMPONENTS = (1, 2, 8, 32, 128)
# Eigenvalues below this part of the largest are rounding errors of float32 rows, as in `principal_components`.
ROUNDING = 1e-10


def thin_out(runs: Mapping[str, torch.Tensor], most: int) -> torch.Tensor:
    """About `most` rows of runs, every n-th of each in its order, ascending; all when there are no more."""
    every = -(-sum(map(len, runs.values())) // most)
    return torch.cat([rows[::every] for rows in runs.values()]).sort().values


def gram_matrix(vectors: torch.Tensor, normalizer: ParameterNormalizer) -> torch.Tensor:
    """Inner products `(K, K)` of normalised and centred rows in float64, a block of columns at a time."""
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    width = max(1, BLOCK_VALUES // len(vectors))
    for start in range(0, vectors.shape[1], width):
        block = normalizer.normalize(vectors[:, start : start + width], start).double()
        block -= block.mean(0)
        gram += block @ block.T
    return gram


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


def linear_explained_variance(
    gram: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, num_components: int
) -> float | None:
    """Share of the held-out rows' variance about the training rows' mean that the training rows' components hold.

    `gram` `(K, K)` are inner products about any centre, `train` and `heldout` indices or masks of rows; `None` when
    all held-out rows equal the mean.
    """
    means = gram[:, train].mean(1)
    gram = gram - means - means[:, None] + means[train].mean()
    values, components = torch.linalg.eigh(gram[train][:, train])
    values, components = values.flip(0)[:num_components], components.flip(1)[:, :num_components]
    kept = values > ROUNDING * values[0]
    scores = gram[heldout][:, train] @ (components[:, kept] / values[kept].sqrt())
    total = gram.diagonal()[heldout].sum()
    return (scores.square().sum() / total).item() if total > 0 else None


def autocorrelation(gram: torch.Tensor) -> torch.Tensor:
    """Autocorrelation `(n,)` of a run at lags 0 … n - 1, `Σ <x_i, x_{i+t}> / Σ <x_i, x_i>` of rows about their mean.

    `gram` `(n, n)` are inner products of the run's rows in their order, about any centre.
    """
    means = gram.mean(1)
    gram = gram - means - means[:, None] + means.mean()
    sums = torch.stack([gram.diagonal(lag).sum() for lag in range(len(gram))])
    return sums / sums[0] if sums[0] > 0 else torch.ones(len(gram), dtype=gram.dtype)


def autocorrelation_time(correlations: torch.Tensor) -> float:
    """Integrated autocorrelation time `1 + 2 Σ ρ_t` in [1, n] rows of correlations `(n,)`; n rows count like n / time.

    The sum ends by the initial monotone sequence: over pairs `ρ_2m + ρ_2m+1` as long as they are positive, none
    counted larger than the one before. Source: Geyer 1992, "Practical Markov chain Monte Carlo", §3.3. A run shorter
    than some ten times the result gives too small a value.
    """
    length = len(correlations)
    pairs = correlations[: length // 2 * 2].reshape(-1, 2).sum(1)
    ended = (pairs <= 0).nonzero()
    if len(ended):
        pairs = pairs[: int(ended[0])]
    time = 2 * pairs.cummin(0).values.sum().item() - 1 if len(pairs) else 1.0
    return min(max(1.0, time), float(length))


def nearest_distances(vectors: torch.Tensor, runs: torch.Tensor) -> dict:
    """Euclidean distances of every raw row `(K, D)` to its nearest other row, and to its nearest row of another run.

    Returns:
        `dict`: quantiles `{"min", "q25", "median", "q75", "max"}` of `nearest` and `nearest_in_other_runs` (`None`
        for a single run), and `median_norm` of the rows.
    """
    squares = squared_distances(vectors, vectors, exclude_self=True)
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
