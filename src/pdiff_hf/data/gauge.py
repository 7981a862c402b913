"""The frame in which the factors of a collection are: that of the adapter in the weights of its base model."""

from __future__ import annotations

import torch

from ..adapters.gauge import LoraPair, canonical_rows, lora_pairs
from ..base_model import BaseModel
from ..layout import ParameterLayout

# Of factors A that were trained on from a start, and it; those of two random starts have hardly any.
MIN_COSINE = 0.5


def gauge_reference(layout: ParameterLayout, base_model: BaseModel | None) -> torch.Tensor | None:
    """The factors in the base model's weights as a row `(D,)`; `None` where a layout has none, or nothing is known."""
    if base_model is None or base_model.weights is None or base_model.adapter is None or not lora_pairs(layout):
        return None
    return layout.flatten(base_model.state_dict())


def recorded_form(layout: ParameterLayout, vectors: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """Rows `(n, D)` as a dataset has them: their factors in a frame that all share.

    Adapters that were trained on from the `reference`, which adds nothing, are in its frame and stay as they are.
    Others get canonical factors, turned to the reference where it adds something.
    """
    pairs = lora_pairs(layout)
    if not pairs or not len(vectors):
        return vectors
    if reference is None:
        return canonical_rows(layout, vectors)
    if any(pair.factors(reference[None])[0].any() for pair in pairs):
        return canonical_rows(layout, vectors, reference)
    return vectors if _share_frame(pairs, vectors, reference[None]) else canonical_rows(layout, vectors)


def _share_frame(pairs: list[LoraPair], vectors: torch.Tensor, reference: torch.Tensor) -> bool:
    """Whether the factors A of all rows are still near those where the reference begins."""
    for pair in pairs:
        own, start = (pair.factors(rows.float())[1].flatten(1) for rows in (vectors, reference))
        if torch.nn.functional.cosine_similarity(own, start).min() < MIN_COSINE:
            return False
    return True
