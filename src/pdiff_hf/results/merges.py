"""Records of the part `merges` of `metrics.json`: adapters of a dataset, merged by peft."""

from __future__ import annotations

from .records import Record


class Merge(Record):
    """A merge of adapters. Accuracies are fractions; errors are relative, 0 for none."""

    description: str | None = None
    """What it is, as a part of a sentence."""
    num: int | None = None
    """Adapters that are merged."""
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    delta_error: float | None = None
    """Distance of its ΔW from the exact mean of ΔW, over the norm of that."""
    identity_error: float | None = None
    """By how much of their spread logits change when one adapter is merged with weight 1: 0 for a merge that works."""
    reload_error: float | None = None
    """By how much of their spread logits change when it is written and loaded again."""
    note: str | None = None
    """Why there is none."""


def best_merge(merges: dict[str, Merge]) -> str | None:
    """The best one on validation examples, single adapters aside; `None` where none was made."""
    made = {n: m for n, m in merges.items() if m.val_accuracy is not None and not n.endswith("single")}
    return max(made, key=lambda name: made[name].val_accuracy) if made else None
