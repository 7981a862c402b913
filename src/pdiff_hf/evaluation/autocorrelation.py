"""How long a run remembers where it was: autocorrelation time, and how many rows count as independent ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..data.order import RowOrder
from ..data.vectors import Vectors, take_rows
from ..models.normalizer import ParameterNormalizer
from .similarity import gram_matrix, nearest_distance

# Of longer runs the time is that of as many rows: it costs their square.
MAX_ROWS = 2000


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


@dataclass(frozen=True)
class RunMemory:
    """Which rows are independent of which: rows of other runs, and of the same run those a time apart.

    Args:
        runs (`torch.Tensor` of shape `(K,)`, int64): Number of the run of every row.
        places (`torch.Tensor` of shape `(K,)`, int64): Place of every row in the order of its run.
        times (`torch.Tensor` of shape `(R,)`, float64): Autocorrelation time of every run, in rows; NaN where the
            order of its rows is not known. Such rows are taken for independent ones.
    """

    runs: torch.Tensor
    places: torch.Tensor
    times: torch.Tensor

    @classmethod
    def measure(cls, vectors: Vectors, order: RowOrder, normalizer: ParameterNormalizer) -> RunMemory:
        """Measure it on raw rows `(K, D)`, in the units of a fitted normaliser, as `pdiff inspect` does."""
        runs, places, times = torch.zeros(len(vectors)).long(), torch.zeros(len(vectors)).long(), []
        for number, (name, found) in enumerate(order.by_run().items()):
            rows = torch.tensor(found)
            runs[rows], places[rows] = number, torch.arange(len(rows))
            if name in order.unordered:
                times.append(math.nan)
            else:
                every = -(-len(rows) // MAX_ROWS)
                time = autocorrelation_time(
                    autocorrelation(gram_matrix(take_rows(vectors, rows[::every]), normalizer))
                )
                times.append(every * time)
        return cls(runs, places, torch.tensor(times, dtype=torch.float64))

    @classmethod
    def independent(cls, num_rows: int) -> RunMemory:
        """Of rows that are a run each."""
        return cls(torch.arange(num_rows), torch.zeros(num_rows).long(), torch.ones(num_rows, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def effective_size(self) -> float | None:
        """How many independent rows all rows count like, n / time for each run; `None` where an order is unknown."""
        size = (torch.bincount(self.runs, minlength=len(self.times)) / self.times).sum().item()
        return size if math.isfinite(size) else None

    def count_independent(self) -> float:
        """How many independent rows they count as, those whose order is not known as one each; at least 2 of several.

        Rows that are all equal would count as one, of which no interval can be told.
        """
        rows = torch.bincount(self.runs, minlength=len(self.times))
        return max((rows / self.times.nan_to_num(1.0)).sum().item(), min(2, len(self)))

    def dependent(self) -> torch.Tensor:
        """Whether rows are not independent, `bool` `(K, K)`: every row of itself, and of those less than a time away.

        In a run shorter than its time, its ends count as independent.
        """
        lengths = torch.bincount(self.runs, minlength=len(self.times))
        apart = self.times.nan_to_num(1.0).clamp(min=1.0).minimum((lengths - 1).double().clamp(min=1.0))
        places = self.places.int()
        lags = (places[:, None] - places).abs()
        return (self.runs[:, None] == self.runs) & (lags < apart[self.runs][:, None])


def independent_distance(
    vectors: Vectors, memory: RunMemory, device: torch.device | str | None = None
) -> torch.Tensor:
    """Euclidean distance from rows `(K, D)` to the nearest independent row, in parameter units.

    Of shape `(m,)`: half-way along a single run shorter than twice its time, a row has none and is left out.
    """
    distances = nearest_distance(vectors, vectors, excluded=memory.dependent(), device=device)
    return distances[distances.isfinite()]
