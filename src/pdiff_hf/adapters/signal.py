"""How much of what adapters share their rows show, as raw factors and as canonical ones."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ..layout import ParameterLayout
from .gauge import lora_pairs

# Numbers that stand for all factors of an adapter; inner products are right on average, to about 1 / √1024.
SKETCH = 1024


class GaugeSignal:
    """Compares raw with canonical factors by random sketches, adapter by adapter.

    The signal of factors is the share of their variance that lies between tasks (1 − within / total), or where tasks
    are not known or have one adapter each, the share of their squared norm that is in the mean of all; both without
    bias, and 0 for factors that share nothing.

    Args:
        layout ([`ParameterLayout`]): Of the adapters.
    """

    def __init__(self, layout: ParameterLayout):
        places = torch.zeros(layout.num_parameters)
        for pair in lora_pairs(layout):
            for spec in (pair.a, pair.b):
                places[spec.offset : spec.offset + spec.numel] = 1.0
        generator = torch.Generator().manual_seed(0)
        # Heads have no gauge.
        self._signs = places * (2 * torch.randint(0, 2, places.shape, generator=generator) - 1)
        self._padding = -len(places) % SKETCH
        self._raw: list[torch.Tensor] = []
        self._canonical: list[torch.Tensor] = []
        self._groups: list[Hashable] = []

    def add(self, raw: torch.Tensor, canonical: torch.Tensor, group: Hashable = None) -> None:
        """Take a row `(D,)` as it was and as it is now, and the task that it is for."""
        self._raw.append(self._sketch(raw))
        self._canonical.append(self._sketch(canonical))
        self._groups.append(group)

    def _sketch(self, row: torch.Tensor) -> torch.Tensor:
        values = torch.nn.functional.pad(row * self._signs, (0, self._padding))
        return values.view(-1, SKETCH).sum(0)

    def result(self) -> dict[str, float | str] | None:
        """`raw`, `canonical` and what they are grouped `by`, `"task"` or `"mean"`; `None` of fewer than 3 adapters."""
        if len(self._raw) < 3:
            return None
        numbers = {group: place for place, group in enumerate(dict.fromkeys(self._groups))}
        groups = torch.tensor([numbers[group] for group in self._groups])
        is_told = None not in numbers and 1 < len(numbers) < len(groups)
        signal = _between if is_told else _of_mean
        raw, canonical = (signal(torch.stack(rows).double(), groups) for rows in (self._raw, self._canonical))
        return {"raw": raw, "canonical": canonical, "by": "task" if is_told else "mean"}


def _of_mean(rows: torch.Tensor, groups: torch.Tensor) -> float:
    """Share of the squared norm in the mean: the inner products of different rows over those of rows themselves."""
    gram = rows @ rows.T
    own = gram.diagonal().sum()
    n = len(rows)
    return max(0.0, ((gram.sum() - own) / (n * (n - 1)) / (own / n).clamp_min(1e-30)).item())


def _between(rows: torch.Tensor, groups: torch.Tensor) -> float:
    """1 − within / total variance, each by its degrees of freedom."""
    centred = rows - rows.mean(0)
    total = centred.square().sum() / (len(rows) - 1)
    within = sum(((own := rows[groups == group]) - own.mean(0)).square().sum() for group in groups.unique())
    within = within / (len(rows) - len(groups.unique()))
    return max(0.0, (1 - within / total.clamp_min(1e-30)).item())
