"""The table of networks for unseen tasks: its columns, and a row for every way to such networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .columns import Column, at, in_format, in_percent, in_whole_percent
from .metrics import Metrics
from .tables import make_table
from .tasks import TaskGroup
from .text import MISSING, ReportTable, points, quantity

ROLES = {
    "generator": "Drawn by the generator",
    "reference": "What they are seen with",
    "ceiling": "What needs labels of the task, or is no network of the layout",
    "weights": "Made of the weights of networks seen",
    "latents": "Made in the generator's latents, without the denoiser",
}


def _to_a_thousandth(value: float, interval: Sequence[float] | None) -> str:
    return quantity(round(value, 3), None if interval is None else [round(end, 3) for end in interval])


ACCURACY = (
    Column(
        "accuracy", "% (95 %)", at("accuracy", "ci95"), in_percent, "mean over networks of a task, then over tasks"
    ),
    Column("worst task", "%", at("worst"), partial(in_percent, digits=1), "of the task on which it is lowest"),
    Column(
        "recovered",
        "(95 %)",
        at("recovered", "recovered_ci95"),
        _to_a_thousandth,
        "(accuracy − majority) / (oracle − majority)",
    ),
    Column("generated minus it", "points (95 %)", at("difference", "difference_ci95"), points, "paired over tasks"),
)
DIVERSITY = (
    Column("disagreement", "%", at("disagreement"), in_percent, "of two networks of a task, on test examples"),
    Column(
        "over trained ones'", "", at("diversity_ratio"), in_format(".2f"), "over that of networks trained on a task"
    ),
    Column("ensemble", "%", at("ensemble"), in_percent, "of the averaged probabilities of a task's networks"),
    Column(
        "minus trained ensemble",
        "points (95 %)",
        at("ensemble_difference", "ensemble_difference_ci95"),
        points,
        "ensemble minus that of as many networks trained on the task",
    ),
    Column(
        "near", "", at("near"), in_format(".2f"), "distance to the nearest network seen, trained on unseen tasks = 1"
    ),
    Column("side", "", at("side"), in_format(".2f"), "that over the distance to the nearest network trained on them"),
    Column("copies", "%", at("copies"), in_whole_percent, "nearer to a network seen than half of any trained one"),
    Column("seconds", "", at("seconds"), in_format(".2g"), "to make one network"),
)


def accuracy_table(metrics: Metrics, num_columns: int = len(ACCURACY)) -> ReportTable:
    """All ways, by their roles."""
    return _table(metrics, ACCURACY[:num_columns], "On unseen tasks", ACCURACY[-1])


def diversity_table(metrics: Metrics) -> ReportTable:
    """Ways with several networks of a task."""
    return _table(metrics, DIVERSITY, "Several networks of a task")


def ordered_groups(metrics: Metrics) -> dict[str, TaskGroup]:
    """All ways in the order of their roles, those without one last."""
    known = {name: group for role in ROLES for name, group in metrics.tasks.of_role(role).items()}
    return known | {name: group for name, group in metrics.tasks.unseen.items() if name not in known}


def _table(metrics: Metrics, columns: Sequence[Column], title: str, bars: Column | None = None) -> ReportTable:
    rows = [(name, (group,)) for name, group in ordered_groups(metrics).items()]
    kept = [column for column in columns if any(column.cell(*row) != MISSING for _, row in rows)]
    rows = [(name, row) for name, row in rows if any(column.cell(*row) != MISSING for column in kept)]
    return make_table("way", kept, rows, title, bars=bars)
