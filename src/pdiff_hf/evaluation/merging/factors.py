"""Means of adapters by what their factors multiply to, and how far other merges are from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters.gauge import LoraPair, canonical_factors, canonical_rows, lora_pairs
from ...layout import ParameterLayout


def mean_factors(layout: ParameterLayout, rows: torch.Tensor) -> torch.Tensor:
    """The mean of A and of B, `(1, D)`, of rows `(n, D)`; the factors are canonical, or it would mean nothing."""
    return rows.double().mean(0, keepdim=True).to(rows.dtype)


def mean_delta_svd(layout: ParameterLayout, rows: torch.Tensor) -> torch.Tensor:
    """The mean of BA at the rank of one adapter, `(1, D)`: of rows `(n, D)`, what is nearest to the mean of BA.

    All else is averaged. Source: Eckart and Young 1936, as PEFT's `svd` combination.
    """
    found = mean_factors(layout, rows)
    for pair in lora_pairs(layout):
        b, a = canonical_factors(*concatenated(pair, rows))
        target_b, target_a = pair.factors(found)
        rank = target_a.shape[-2]
        target_b[0], target_a[0] = b[..., :rank], a[..., :rank, :]
    return canonical_rows(layout, found)


def concatenated(pair: LoraPair, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the mean of BA of rows `(n, D)`: B `(groups, out / groups, n r / groups)` and A likewise, float64."""
    b, a = (factor.double() for factor in pair.factors(rows))
    return b.permute(1, 2, 0, 3).flatten(2) / len(rows), a.transpose(0, 1).flatten(1, 2)


def concatenated_state(
    layout: ParameterLayout, rows: torch.Tensor, config: Mapping[str, Any], scaling: float
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name and the configuration of the adapter whose BA is the mean of those of rows `(n, D)`, exactly.

    It is what PEFT's `cat` combination makes, of the rank n·r; all else is averaged.

    Args:
        config (`Mapping`): Of the rows.
        scaling (`float`): What peft multiplies their BA by.
    """
    state = layout.unflatten(mean_factors(layout, rows)[0])
    rank = len(rows) * config["r"]
    for pair in lora_pairs(layout):
        b, a = (factor.float() for factor in concatenated(pair, rows))
        state[pair.a.name] = a.reshape(-1, *pair.a.shape[1:]).to(state[pair.a.name].dtype)
        state[pair.b.name] = b.reshape(pair.b.shape[0], -1, *pair.b.shape[2:]).to(state[pair.b.name].dtype)
    return state, {**config, "r": rank, "lora_alpha": scaling * rank, "use_rslora": False}


def delta_error(layout: ParameterLayout, merged: torch.Tensor, rows: torch.Tensor) -> float:
    """How far BA of a merge `(1, D)` is from the mean of those of rows `(n, D)`, over all layers, relative to it."""
    missed = total = 0.0
    for pair in lora_pairs(layout):
        b, a = concatenated(pair, rows)
        own_b, own_a = (factor[0].double() for factor in pair.factors(merged))
        mean = b @ a
        missed += (own_b @ own_a - mean).square().sum().item()
        total += mean.square().sum().item()
    return (missed / total) ** 0.5 if total else float(missed > 0)
