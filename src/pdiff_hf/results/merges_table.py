"""The table of merges of adapters, and which of them is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .columns import Column, Write, at, in_format, in_percent
from .metrics import Metrics
from .tables import make_table
from .text import MISSING, ReportTable, points, quantity, signed_number


def _error(value: float, _: Sequence[float] | None) -> str:
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def _chosen(values: Mapping[str, Any], _: Sequence[float] | None) -> str:
    return ", ".join(f"{key} {value:.2g}" for key, value in values.items())


def _columns(metrics: Metrics) -> list[Column]:
    metric = metrics.metric
    score: Write = in_percent if metric.is_accuracy else quantity
    difference: Write = points if metric.is_accuracy else signed_number
    unit, points_unit = ("% (95 %)", "points (95 %)") if metric.is_accuracy else ("(95 %)", "(95 %)")
    return [
        Column(metric.name, unit, at("score", "test_ci95"), score, f"Test {metric.name} of the merge."),
        Column(
            "on val",
            unit.split(" (")[0] if metric.is_accuracy else "",
            at("val"),
            score,
            "The same on the examples that merges are chosen on.",
        ),
        Column(
            "generated minus",
            points_unit,
            at("difference.difference", "difference.ci95"),
            difference,
            f"Mean test {metric.name} of the generated adapters minus that of the merge.",
        ),
        Column("rank", "", at("rank"), in_format("g"), "Of the merge."),
        Column("error of ΔW", "", at("delta_error"), _error, "Of what it adds, relative to the exact mean."),
        Column(
            "identity",
            "",
            at("identity_error"),
            _error,
            "By how much of their spread outputs change when one adapter is merged alone: 0 when it gives itself.",
        ),
        Column("peft alone", "", at("identity_error_as_is"), _error, "The same of peft on adapters as they are."),
        Column("reloaded", "", at("reload_error"), _error, "By how much they change when peft loads the merge."),
        Column("chosen on val", "", at("chosen"), _chosen, "Weight of each adapter, and share of values kept."),
    ]


def merges_table(metrics: Metrics) -> ReportTable:
    """A row for every way to merge the adapters; columns of which nothing is known are left out."""
    rows = [(name, (merge,)) for name, merge in metrics.merges.items()]
    columns = [column for column in _columns(metrics) if any(column.cell(*row) != MISSING for _, row in rows)]
    return make_table("merge", columns, rows, "Merges of the adapters")


def merges_text(metrics: Metrics) -> list[str]:
    """Which merge is best, how generated adapters compare with it, and what peft alone does to such adapters."""
    best, metric = metrics.best_merge(), metrics.metric
    if best is None:
        return []
    found = metrics.merges[best]
    text = f"Of {found.num_adapters:g} adapters the best merge by the val examples is {found.description or best} "
    text += f"({best}): test {metric.name} {metric.write(found.score)}"
    if found.difference.difference is not None:
        text += f"; the mean of the generated adapters minus it is {metric.describe(found.difference)}"
    lines = [f"{text}."]
    notes: dict[str, list[str]] = {}
    for name, merge in metrics.merges.items():
        if merge.note:
            notes.setdefault(merge.note, []).append(name)
    return [*lines, *(f"{', '.join(names)}: {note}." for note, names in notes.items())]
