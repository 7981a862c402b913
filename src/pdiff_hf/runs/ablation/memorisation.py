"""What generators of several numbers of checkpoints say about memorisation: one table, one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ...files import atomic_write, write_json
from ...report.plots.memorisation import plot_audit
from ...results.text import MISSING, ReportTable, markdown_table, name_examples, number, percent, points

SCHEMA = 1
# Of the table, what fits into 120 columns: header, and width that keeps a number and its interval on one line.
TERMINAL_COLUMNS = {
    "K": ("K", 3),
    "minus originals, points (95 %)": ("minus originals,\npoints (95 %)", 23),
    "IoU to nearest (95 %)": ("IoU to\nnearest (95 %)", 19),
    "IoU, originals": ("among\noriginals", 9),
    "L2 in yardsticks (95 %)": ("L2 in\nyardsticks (95 %)", 19),
    "novel and performant, % (95 %)": ("novel and\nperformant, %", 13),
    "copies, %": ("copies,\n%", 7),
}
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
    results: Mapping[int, tuple[Mapping, Mapping]],
    latents: Mapping[int, tuple[int, int]],
    task: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the evaluations of several K together.

    Args:
        results (`Mapping[int, tuple]`): Content of `metrics.json` and `reconstruction.json` by K.
        latents (`Mapping[int, tuple[int, int]]`): C and L by K.
        task (`Mapping`): What was learned.

    Returns:
        `dict`: content of `audit.json`, described in `docs/analysis.md`.
    """
    rows = []
    for count, (metrics, gate) in results.items():
        yardstick = metrics["groups"]["original"]["similarity"]["l2_nearest_mean"]
        rows.append(
            {
                "num_checkpoints": count,
                "latent_shape": list(latents[count]),
                "explained_variance": gate["explained_variance"],
                "yardstick": yardstick,
                "groups": {
                    name: _row(group, yardstick) for name, group in metrics["groups"].items() if name in AUDIT_GROUPS
                },
            }
        )
    metrics = next(iter(results.values()))[0]
    return {
        "schema": SCHEMA,
        "kind": task.get("kind"),
        "dataset": Path(task["dataset"]).name,
        "num_parameters": metrics["num_parameters"],
        "num_test": metrics["num_test"],
        "seed": metrics["seed"],
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
        + name_examples(f"{found['num_test']:,} test images", found)
        + ", the same for every K. Each generator was trained on the first K checkpoints of one run alone.",
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
    tables = [ReportTable(("K", *_COLUMNS), [_generated(row) for row in found["rows"]], "Generated networks")]
    names = [name for name in AUDIT_GROUPS if any(name in row["groups"] for row in found["rows"])]
    for title, cell in _SIMILARITIES.items():
        rows = []
        for row in found["rows"]:
            groups = row["groups"]
            rows.append(
                (
                    str(row["num_checkpoints"]),
                    *(cell(groups[name]) if name in groups else MISSING for name in names),
                )
            )
        tables.append(ReportTable(("K", *names), rows, title))
    return tables


def make_audit_table(found: Mapping[str, Any]) -> Table:
    """The first table of an audit for the terminal."""
    table = Table(show_edge=False, pad_edge=False)
    for header, width in TERMINAL_COLUMNS.values():
        table.add_column(header, justify="right", min_width=width)
    for row in found["rows"]:
        cells = dict(zip(("K", *_COLUMNS), _generated(row), strict=True))
        table.add_row(*(cells[column] for column in TERMINAL_COLUMNS))
    return table


_COLUMNS = (
    "latents",
    "explained, %",
    "accuracy, %",
    "minus originals, points (95 %)",
    "IoU to nearest (95 %)",
    "IoU, originals",
    "L2 in yardsticks (95 %)",
    "novel, %",
    "novel and performant, % (95 %)",
    "copies, %",
)
_SIMILARITIES = {
    "Largest IoU of wrong predictions with one of the K checkpoints (95 %)": lambda group: number(
        group["iou_max"]["mean"], ".3f", group["iou_max"]["ci95"]
    ),
    "Distance to the nearest of the K checkpoints, in yardsticks (95 %)": lambda group: number(
        group["distance"]["mean"], ".3g", group["distance"]["ci95"]
    ),
    "Novel and performant, % (95 %)": lambda group: percent(
        group["novel_and_performant"]["share"], group["novel_and_performant"]["ci95"], 0, ""
    ),
}


def _generated(row: Mapping[str, Any]) -> Sequence[str]:
    group, original = row["groups"]["generated"], row["groups"]["original"]
    difference, joint = group["difference_to_original"], group["novel_and_performant"]
    return (
        str(row["num_checkpoints"]),
        "×".join(map(str, row["latent_shape"])),
        percent(row["explained_variance"], unit=""),
        percent(group["accuracy"]["mean"], unit=""),
        points(difference["difference"], difference["ci95"]),
        number(group["iou_max"]["mean"], ".3f", group["iou_max"]["ci95"]),
        number(original["iou_max"]["mean"], ".3f"),
        number(group["distance"]["mean"], ".3g", group["distance"]["ci95"]),
        percent(group["novel"], digits=0, unit=""),
        percent(joint["share"], joint["ci95"], 0, ""),
        percent(group["copied"], digits=0, unit=""),
    )


def _row(group: Mapping[str, Any], yardstick: float | None) -> dict[str, Any]:
    similarity, scores = group["similarity"], group["novel_and_performant"]
    intervals = similarity["ci95"]
    accuracy = group["test_accuracy"]
    distance, ends = similarity["l2_nearest_mean"], intervals["l2_nearest_mean"]
    is_known = distance is not None and bool(yardstick)
    return {
        "n": group["n"],
        "accuracy": {"mean": accuracy["mean"], "ci95": accuracy["ci95"]},
        "difference_to_original": group["difference_to_original"],
        "iou_max": {"mean": similarity["iou_max_mean"], "ci95": intervals["iou_max_mean"]},
        "distance": {
            "mean": distance / yardstick if is_known else None,
            "ci95": [end / yardstick for end in ends] if is_known and ends else None,
        },
        "performant": scores["performant"],
        "novel": scores["novel"]["1x"],
        "novel_and_performant": {"share": scores["joint"]["1x"], "ci95": scores["ci95"]["joint"]["1x"]},
        "copied": scores["copied"],
    }
