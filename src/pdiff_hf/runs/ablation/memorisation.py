"""Tables and figure of the memorisation audit, by the number of checkpoints that a generator was given."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...files import atomic_write, write_json
from ...report.plots.memorisation import plot_audit
from ...results.columns import GROUP_COLUMNS, Column, at, in_percent
from ...results.metrics import Metrics
from ...results.records import GroupMetrics
from ...results.tables import fold_header, make_table
from ...results.text import ReportTable, markdown_table

SCHEMA = 1
# Of the table, what fits into 120 columns, and the width that keeps a number and its interval on one line.
TERMINAL_WIDTHS = {"K": 3, "difference": 23, "iou_nearest": 19, "among": 9, "yardsticks": 19, "joint": 13, "copies": 7}
# What the generated networks are seen with. `unseen`: checkpoints of the same run that the generator was not given.
AUDIT_GROUPS = ("original", "generated", "unseen", "average_16", "noise_0.05", "noise_0.1")
REFERENCES = (
    "`original`: every one of the K checkpoints against the others. `unseen`: later checkpoints of the same run, "
    "which the generator was not given. `average_16`, `noise_0.05`, `noise_0.1`: made of the K checkpoints.",
    "The largest of K similarities grows with K for any network: compare the groups of one K, not one group over K.",
    "Yardstick: the mean distance of the K checkpoints to their nearest other one. Novel: farther than that from "
    "every one of them. Performant: test accuracy not below their mean. Copy: nearer than a third of it.",
)


def summarize_audit(
    results: Mapping[int, tuple[Metrics, Mapping]],
    latents: Mapping[int, tuple[int, int]],
    task: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the evaluations of several K together.

    Args:
        results (`Mapping[int, tuple]`): What was found, and content of `reconstruction.json`, by K.
        latents (`Mapping[int, tuple[int, int]]`): C and L by K.
        task (`Mapping`): What was learned.

    Returns:
        `dict`: content of `audit.json`, described in `docs/analysis.md`.
    """
    rows = []
    for count, (metrics, gate) in results.items():
        rows.append(
            {
                "num_checkpoints": count,
                "latent_shape": list(latents[count]),
                "explained_variance": gate["explained_variance"],
                "yardstick": metrics.yardstick,
                "groups": {
                    name: _row(group, metrics.original)
                    for name, group in metrics.groups.items()
                    if name in AUDIT_GROUPS
                },
            }
        )
    metrics = next(iter(results.values()))[0]
    return {
        "schema": SCHEMA,
        "kind": task.get("kind"),
        "dataset": Path(task["dataset"]).name,
        "num_parameters": metrics.num_parameters,
        "num_test": metrics.num_test,
        "seed": metrics.seed,
        "rows": rows,
    }


def write_audit(found: Mapping[str, Any], output_dir: str | Path) -> list[Path]:
    """Write `audit.json`, `audit.md` and `audit.png`; returns the files."""
    output_dir = Path(output_dir)
    write_json(output_dir / "audit.json", found)
    plot = plot_audit(found)
    lines = [
        "# Memorisation audit",
        "",
        f"{found['num_parameters']:,} generated parameters of networks on {found['dataset']}, "
        f"{found['num_test']:,} test examples, the same for every K. Each generator was trained on the first K "
        "checkpoints of one run alone.",
        "",
        f"![{plot.alt}](audit.png)",
        "",
    ]
    for table in audit_tables(found):
        lines += [*markdown_table(table), ""]
    lines += [*(f"- {text}" for text in REFERENCES), ""]
    with atomic_write(output_dir / "audit.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return [output_dir / "audit.json", output_dir / "audit.md", plot.save_png(output_dir)]


def audit_tables(found: Mapping[str, Any]) -> list[ReportTable]:
    """Tables of an audit: the generated networks by K, then every group by K for each kind of similarity."""
    rows = [(str(row["num_checkpoints"]), (row,)) for row in found["rows"]]
    tables = [make_table("K", list(COLUMNS.values()), rows, "Generated networks")]
    names = [name for name in AUDIT_GROUPS if any(name in row["groups"] for row in found["rows"])]
    for key, title in SIMILARITIES.items():
        columns = [_of(name, key, name=name, unit="") for name in names]
        tables.append(make_table("K", columns, rows, title))
    return tables


def make_audit_table(found: Mapping[str, Any]) -> Table:
    """The first table of an audit for the terminal."""
    table = Table(show_edge=False, pad_edge=False)
    first, keys = audit_tables(found)[0], ["K", *COLUMNS]
    for key, width in TERMINAL_WIDTHS.items():
        header = fold_header(first.columns[keys.index(key)], width)
        table.add_column(header, justify="right", min_width=width)
    for row in first.rows:
        table.add_row(*(row[keys.index(key)] for key in TERMINAL_WIDTHS))
    return table


def _row(group: GroupMetrics, original: GroupMetrics) -> dict[str, Any]:
    accuracy, shares, intervals = group.test_accuracy, group.novel_and_performant, group.similarity.ci95
    distance, ends = GROUP_COLUMNS["yardsticks"].read(group, original)
    return {
        "n": group.n,
        "accuracy": {"mean": accuracy.mean, "ci95": accuracy.ci95},
        "difference_to_original": group.difference_to_original.to_dict(),
        "iou_max": {"mean": group.similarity.iou_max_mean, "ci95": intervals.iou_max_mean},
        "distance": {"mean": distance, "ci95": ends},
        "performant": shares.performant,
        "novel": shares.novel["1x"],
        "novel_and_performant": {"share": shares.joint["1x"], "ci95": shares.ci95.joint["1x"]},
        "copied": shares.copied,
    }


def _groups(name: str, row: Mapping[str, Any]) -> tuple[GroupMetrics, GroupMetrics]:
    """A group and the originals of one K, distances in yardsticks."""
    return _group(row["groups"].get(name)), _group(row["groups"]["original"])


def _group(values: Mapping[str, Any] | None) -> GroupMetrics:
    if values is None:
        return GroupMetrics()
    iou, distance, joint = (values[key] for key in ("iou_max", "distance", "novel_and_performant"))
    return GroupMetrics(
        test_accuracy=values["accuracy"],
        difference_to_original=values["difference_to_original"],
        similarity={
            "iou_max_mean": iou["mean"],
            "l2_nearest_mean": distance["mean"],
            "ci95": {"iou_max_mean": iou["ci95"], "l2_nearest_mean": distance["ci95"]},
        },
        novel_and_performant={
            "novel": {"1x": values["novel"]},
            "joint": {"1x": joint["share"]},
            "copied": values["copied"],
            "ci95": {"joint": {"1x": joint["ci95"]}},
        },
    )


def _of(group: str, key: str, **changes: str) -> Column:
    return GROUP_COLUMNS[key].of(partial(_groups, group), **changes)


# fmt: off
COLUMNS = {
    "latents": Column("latents", "", at("latent_shape"), lambda shape, _: "×".join(map(str, shape)),
        "Channels and length of the latents."),
    "explained": Column("explained", "%", at("explained_variance"), in_percent,
        "Variance of held-out checkpoints that the autoencoder explains."),
    "accuracy": _of("generated", "accuracy").plain,
    **{key: _of("generated", key) for key in ("difference", "iou_nearest")},
    "among": _of("original", "iou_nearest", name="IoU, originals").plain,
    **{key: _of("generated", key) for key in ("yardsticks", "novel", "joint", "copies")},
}
# fmt: on
SIMILARITIES = {
    "iou_nearest": "Largest IoU of wrong predictions with one of the K checkpoints (95 %)",
    "yardsticks": "Distance to the nearest of the K checkpoints, in yardsticks (95 %)",
    "joint": "Novel and performant, % (95 %)",
}
