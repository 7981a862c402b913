"""The frame in which the factors of a collection are: all are turned to one adapter, the mean of some of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import torch

from ..adapters.gauge import canonical_rows, lora_pairs, mean_adapter, num_averaged
from ..base_model import BaseModel
from ..layout import ParameterLayout
from .integrity import find_shards
from .shards import read_rows, vector_blocks


def gauge_reference(
    layout: ParameterLayout, base_model: BaseModel | None, folder: Path, run: str | None = None
) -> torch.Tensor | None:
    """The adapter `(D,)` that others are turned to: that in the base model's weights, as of an import or a zoo.

    Where that adds nothing, as adapters begin, it is the mean of the first rows of the dataset in `folder`, but for
    those of `run`, which is being written; `None` without any, and for networks without factors.
    """
    pairs = lora_pairs(layout)
    if not pairs:
        return None
    if base_model is not None and base_model.weights is not None and base_model.adapter is not None:
        row = layout.flatten(base_model.state_dict())
        if all(pair.factors(row[None])[0].any() for pair in pairs):
            return row
    missing, found = num_averaged(layout), []
    for file in find_shards(folder):
        for table in read_rows(file, layout):
            others = table if run is None else table.filter(pc.field("run") != run)
            for block in vector_blocks(others.slice(0, missing)):
                found.append(torch.tensor(block))
                missing -= len(block)
            if missing == 0:
                return torch.cat(found).mean(0)
    return torch.cat(found).mean(0) if found else None


def recorded_form(layout: ParameterLayout, vectors: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """Rows `(n, D)` as a dataset has them: canonical factors, turned to a reference, by default the mean of them."""
    if not lora_pairs(layout) or not len(vectors):
        return vectors
    return canonical_rows(layout, vectors, mean_adapter(layout, vectors) if reference is None else reference)
