"""What an inspection says of the gauge of LoRA factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters.gauge import canonical_rows, lora_pairs, near_equal
from ...layout import ParameterLayout

# Neighbouring singular values that differ by less, relatively, turn into one another.
TOLERANCE = 0.01


def gauge_figures(vectors: torch.Tensor, layout: ParameterLayout, metadata: Mapping[str, Any]) -> dict | None:
    """Near-equal singular values, and what raw factors would have shown; `None` of networks without LoRA factors.

    Returns:
        `dict`: `num_layers`; `tolerance`; `near_equal`, the share of a layer's adapters with neighbouring singular
        values within it, on average over layers, and of the `worst_layer`; `signal`, see [`GaugeSignal`], as the
        import has found it, or `None`.
    """
    if not lora_pairs(layout):
        return None
    shares = near_equal(layout, canonical_rows(layout, vectors), TOLERANCE)
    worst = max(shares, key=shares.get)
    return {
        "num_layers": len(shares),
        "tolerance": TOLERANCE,
        "near_equal": sum(shares.values()) / len(shares),
        "worst_layer": {"name": worst, "near_equal": shares[worst]},
        "signal": metadata.get("import", {}).get("gauge"),
    }


def gauge_text(figures: Mapping[str, Any]) -> str:
    """The figures in a sentence or two."""
    text = f"factors of {figures['num_layers']} layers; neighbouring singular values within "
    text += f"{figures['tolerance']:.0%}, whose vectors turn into one another, in {figures['near_equal']:.1%} of all"
    if figures["near_equal"]:
        worst = figures["worst_layer"]
        text += f" (most in {worst['name'].removeprefix('base_model.model.')}, {worst['near_equal']:.1%})"
    if (signal := figures["signal"]) is not None:
        what = "of the variance lies between tasks" if signal["by"] == "task" else "of the squared norm is in the mean"
        text += f"; {signal['canonical']:.1%} {what}, of raw factors it would be {signal['raw']:.1%}"
    return text
