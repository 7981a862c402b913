"""The adapter to which the factors of a collection are turned: that in the weights of its base model."""

from __future__ import annotations

import torch

from ..adapters.gauge import canonical_rows, lora_pairs
from ..base_model import BaseModel
from ..layout import ParameterLayout


def gauge_reference(layout: ParameterLayout, base_model: BaseModel | None) -> torch.Tensor | None:
    """The factors in the base model's weights as a row `(D,)`; `None` where a layout has none, or nothing is known."""
    if base_model is None or base_model.weights is None or base_model.adapter is None or not lora_pairs(layout):
        return None
    return layout.flatten(base_model.state_dict())


def recorded_form(
    layout: ParameterLayout, base_model: BaseModel | None, vectors: torch.Tensor, reference: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows `(n, D)` as a dataset has them: canonical factors, turned to the `reference`, by default the base's."""
    if not lora_pairs(layout):
        return vectors
    return canonical_rows(layout, vectors, gauge_reference(layout, base_model) if reference is None else reference)
