"""Records of the part `merges` of `metrics.json`: adapters of a dataset, merged by peft."""

from __future__ import annotations

from collections.abc import Mapping

from .records import Record
from .text import ReportTable, percent


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


def best_merge(merges: Mapping[str, Merge]) -> str | None:
    """The best one on validation examples, single adapters aside; `None` where none was made."""
    made = {n: m for n, m in merges.items() if m.val_accuracy is not None and not n.endswith("single")}
    return max(made, key=lambda name: made[name].val_accuracy) if made else None


COLUMNS = ("test", "val", "ΔW error", "identity error", "reload error", "adapters")


def merge_table(merges: Mapping[str, Merge]) -> ReportTable:
    """A row for every merge, the best on validation examples first; single adapters are where they fall."""
    ranked = sorted(merges.items(), key=lambda item: -(item[1].val_accuracy or -1.0))
    rows = []
    for name, merge in ranked:
        errors = (merge.delta_error, merge.identity_error, merge.reload_error)
        numbers = [_percent(merge.test_accuracy), _percent(merge.val_accuracy), *map(_error, errors)]
        rows.append((name, *numbers, f"{merge.num or 0:g}", merge.note or merge.description or ""))
    return ReportTable(("merge", *COLUMNS, "what it is"), rows, "Merges of adapters")


def merge_line(merges: Mapping[str, Merge]) -> str | None:
    """Which merge is the best, in a sentence; `None` where none was made."""
    if (name := best_merge(merges)) is None:
        return None
    best, single = merges[name], merges.get("best_single")
    text = f"The best merge on validation examples is `{name}`, {best.description}: "
    text += f"{_percent(best.test_accuracy)} on test"
    if single is not None and single.test_accuracy is not None:
        text += f", the best single adapter {_percent(single.test_accuracy)}"
    return f"{text}."


def _percent(value: float | None) -> str:
    return "" if value is None else percent(value)


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
