"""The frame in which the factors of a collection are: all are turned to one adapter that adds something."""

from __future__ import annotations

from pathlib import Path

import torch

from ..adapters.gauge import canonical_rows, lora_pairs
from ..base_model import BaseModel
from ..layout import ParameterLayout
from .integrity import find_shards
from .shards import read_rows, vector_blocks


def gauge_reference(layout: ParameterLayout, base_model: BaseModel | None, folder: Path) -> torch.Tensor | None:
    """The adapter `(D,)` that others are turned to: that in the base model's weights, as of an import.

    Where that adds nothing, as adapters begin, it is the first row of the dataset in `folder`; `None` without any, and
    for networks without factors.
    """
    pairs = lora_pairs(layout)
    if not pairs:
        return None
    if base_model is not None and base_model.weights is not None and base_model.adapter is not None:
        row = layout.flatten(base_model.state_dict())
        if all(pair.factors(row[None])[0].any() for pair in pairs):
            return row
    for file in find_shards(folder):
        for table in read_rows(file, layout):
            for block in vector_blocks(table):
                return torch.tensor(block[0])
    return None


def recorded_form(layout: ParameterLayout, vectors: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """Rows `(n, D)` as a dataset has them: canonical factors, turned to a reference, by default the first of them."""
    if not lora_pairs(layout) or not len(vectors):
        return vectors
    if reference is None:
        reference = canonical_rows(layout, vectors[:1])[0]
    return canonical_rows(layout, vectors, reference)
