"""Memorisation along the axis `num_checkpoints`: how alike networks are to the K checkpoints of their generator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ...report.plots.memorisation import plot_memorisation
from ...report.plots.style import Plot
from ...results.columns import GROUP_COLUMNS, Column
from ...results.metrics import Metrics
from ...results.records import GroupMetrics
from ...results.tables import make_table
from ...results.text import ReportTable

AXIS = "num_checkpoints"
# What the generated networks are seen with.
GROUPS = ("original", "generated", "unseen", "average_16", "noise_0.05", "noise_0.1")
NOTES = (
    "`original`: every one of the K checkpoints against the others. `unseen`: later checkpoints of the same run, "
    "which the generator was not given. `average_16`, `noise_0.05`, `noise_0.1`: made of the K checkpoints.",
    "The largest of K similarities grows with K for any network: compare the groups of one K, not one group over K.",
    "Yardstick: the mean distance of the K checkpoints to their nearest other one. Novel: farther than that from "
    "every one of them. Performant: test accuracy not below their mean. Copy: nearer than a third of it.",
)


def similarity_of(metrics: Metrics) -> dict[str, Any]:
    """The groups of one point, as `ablation.json` has them under `similarity`."""
    return {name: metrics.groups[name].to_dict() for name in GROUPS if name in metrics.groups}


def memorisation(results: Mapping) -> tuple[list[ReportTable], Plot] | None:
    """Tables and figure of the complete points on the axis, by K; `None` when fewer than two of them are.

    Args:
        results (`Mapping`): Content of `ablation.json`.
    """
    points = [results["points"][entry["point"]] for entry in results["axes"].get(AXIS, ())]
    found = {
        point["num_checkpoints"]: {name: GroupMetrics(**values) for name, values in point["similarity"].items()}
        for point in points
        if point["num_runs"]
    }
    if len(found) < 2:
        return None
    rows = [(str(count), (groups,)) for count, groups in found.items()]
    tables = [make_table("K", COLUMNS, rows, "Memorisation: the generated networks")]
    names = [name for name in GROUPS if any(name in groups for groups in found.values())]
    for key, title in SIMILARITIES.items():
        tables.append(make_table("K", [_of(name, key, name=name, unit="") for name in names], rows, title))
    return tables, plot_memorisation(found)


def _of(group: str, key: str, **changes: str) -> Column:
    return GROUP_COLUMNS[key].of(partial(_group, group), **changes)


def _group(name: str, groups: Mapping[str, GroupMetrics]) -> tuple[GroupMetrics, GroupMetrics]:
    """A group, of which nothing is known when the point has none, and the originals."""
    return groups.get(name, GroupMetrics()), groups["original"]


COLUMNS = [
    *(_of("generated", key) for key in ("difference", "iou_nearest")),
    _of("original", "iou_nearest", name="IoU, originals").plain,
    *(_of("generated", key) for key in ("yardsticks", "novel", "joint", "copies")),
]
SIMILARITIES = {
    "iou_nearest": "Largest IoU of wrong predictions with one of the K checkpoints (95 %)",
    "yardsticks": "Distance to the nearest of the K checkpoints, in yardsticks (95 %)",
    "joint": "Novel and performant, % (95 %)",
}
