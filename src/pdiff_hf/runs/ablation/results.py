"""Results of an ablation: numbers of every point, and the files people and programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from ...evaluation.summary import aggregate_seeds
from ...evaluation.verdict import make_verdict
from ...files import atomic_write, read_json, write_json
from ...report.plots.ablation import plot_ablation
from ...report.plots.curves import plot_memorisation
from ...report.plots.style import Plot
from ...report.render import markdown_sections
from ...report.write import PACKAGES
from ...results.columns import Column, Value, at, in_format, in_percent
from ...results.metrics import METRICS_FILE, Metrics
from ...results.population_table import population_column
from ...results.records import GroupMetrics
from ...results.tables import fold_header, group_column, make_table
from ...results.text import ReportTable, Section
from ..folder import GATE_FILE, Run
from ..groups import GENERATOR_STAGES
from .axes import AXES
from .execute import problem_of
from .plan import Job, Plan, make_jobs

SCHEMA = 1
NOTES = (
    "Generated: mean test accuracy of the generated networks. Best: the generated network that is best on val, its "
    "accuracy on test. Originals: their mean, of this point's own checkpoints; soup: their uniform average.",
    "Variance explained: of held-out checkpoints by decode(encode(x)). Peak memory: of the process up to the end of "
    "both training stages, with Python and its libraries, so that differences between points tell more than its size. "
    "Seconds: both training stages and drawing the networks.",
)
ONE_RUN = "Intervals are over test examples and networks; the best network's is exact (Clopper-Pearson)."
SEEDS = "Every number is the mean over seeds {seeds}, every interval that of this mean by Student's t over the seeds."
# How alike networks are to the K checkpoints of their generator: seen along this axis, with these groups.
MEMORISATION_AXIS = "num_checkpoints"
MEMORISATION_GROUPS = ("original", "generated", "unseen", "average_16", "noise_0.05", "noise_0.1")
MEMORISATION_NOTES = (
    "`original`: every one of the K checkpoints against the others. `unseen`: later checkpoints of the same run, "
    "which the generator was not given. `average_16`, `noise_0.05`, `noise_0.1`: made of the K checkpoints.",
    "The largest of K similarities grows with K for any network: compare the groups of one K, not one group over K.",
    "Yardstick: the mean distance of the K checkpoints to the nearest independent one. Novel: farther than that from "
    "every one of them. Performant: test accuracy not below their mean. Copy: nearer than a third of what they are "
    "from their nearest other one.",
)


def collect_results(plan: Plan, folder: str | Path) -> dict[str, Any]:
    """Read what the runs of an ablation in `folder` have written; the content of `ablation.json`."""
    jobs: dict[str, list[Job]] = {}
    for job in make_jobs(plan):
        jobs.setdefault(job.point.name, []).append(job)
    points = {
        point.name: {"values": point.values, "changes": point.changes, **_summarize(jobs[point.name], Path(folder))}
        for point in plan.points
    }
    return {
        "schema": SCHEMA,
        "recipe": plan.recipe,
        **plan.options,
        "seeds": plan.seeds,
        "grid": plan.grid,
        "base": plan.base,
        "axes": {
            axis: [{"value": value, "point": point.name} for value, point in plan.on_axis(axis)] for axis in plan.axes
        },
        "points": points,
        "versions": {package: version(package) for package in PACKAGES},
    }


def _summarize(jobs: Sequence[Job], folder: Path) -> dict[str, Any]:
    """What is known of a point: the numbers of its run, or means over its seeds; none unless a run is complete."""
    complete, problems = {}, []
    for job in jobs:
        run = Run(folder / job.folder)
        if run.is_complete("evaluate"):
            complete[job.seed] = run
        elif problem := problem_of(job, folder):
            problems.append(problem if job.seed is None else f"seed {job.seed}: {problem}")
    summary: dict[str, Any] = {
        "folder": str(Path("points") / jobs[0].point.name),
        "status": "complete" if len(complete) == len(jobs) else "failed" if problems else "incomplete",
        "problem": " ".join(problems) or None,
        "num_runs": len(complete),
    }
    if not complete:
        return summary
    metrics = [Metrics.read(run.path("evaluate") / METRICS_FILE) for run in complete.values()]
    together = metrics[0] if len(metrics) == 1 else aggregate_seeds(dict(zip(complete, metrics, strict=True)))
    gates = [read_json(run.path("autoencoder") / GATE_FILE) for run in complete.values()]
    return {
        **summary,
        "num_parameters": together.num_parameters,
        "groups": {name: group.to_dict() for name, group in together.groups.items()},
        "population": {name: found.to_dict() for name, found in together.population.items()},
        "explained_variance": _mean([gate["explained_variance"] for gate in gates]),
        "accuracy_drop": _mean([gate.get("accuracy_drop") for gate in gates]),
        "peak_rss_mb": {
            stage: max(value.peak_rss_mb[stage] for value in metrics) for stage in ("autoencoder", "diffusion")
        },
        "seconds": together.timings_s,
        "finding": together.finding or make_verdict(together)[0],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def write_results(results: Mapping, folder: str | Path) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and a figure for each axis; returns the files."""
    folder = Path(folder)
    plots = [plot_ablation(axis, results) for axis in results["axes"]]
    intervals = SEEDS.format(seeds=results["seeds"]) if len(results["seeds"]) > 1 else ONE_RUN
    tables = make_tables(results)
    sections = [Section("How to read it", [*NOTES, intervals])]
    for axis, plot, table in zip(results["axes"], plots, tables, strict=False):
        sections.append(Section(axis, (), [plot.name], [table]))
    if results["grid"]:
        sections.append(Section("Grid", tables=tables[-1:]))
    if found := memorisation(results):
        similarities, plot = found
        plots.append(plot)
        sections.append(Section("Memorisation", MEMORISATION_NOTES, [plot.name], similarities, bullets=True))
    if problems := list_problems(results):
        sections.append(Section("Problems", problems, bullets=True))
    lines = [f"# Ablation of {results['recipe']}", "", *markdown_sections(sections, plots)]
    lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items()), ""]
    write_json(folder / "ablation.json", results)
    with atomic_write(folder / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return [folder / "ablation.json", folder / "ablation.md", *(plot.save_png(folder) for plot in plots)]


def make_tables(results: Mapping) -> list[ReportTable]:
    """A table for each axis, and for a grid one of all points."""
    tables, columns = [], list(COLUMNS.values())
    for axis, entries in results["axes"].items():
        rows = []
        for entry in entries:
            is_base = entry["value"] == results["base"][axis]
            name = f"{entry['value']} (recipe)" if is_base else entry["value"]
            rows.append((name, (results["points"][entry["point"]],)))
        help_text = f" ({AXES[axis].help})" if axis in AXES else ""
        tables.append(make_table("value", columns, rows, f"{axis}{help_text}"))
    if results["grid"]:
        rows = [(", ".join(point["values"].values()), (point,)) for point in results["points"].values()]
        tables.append(make_table(", ".join(results["axes"]), columns, rows, "All combinations"))
    return tables


def make_terminal_table(results: Mapping) -> Table:
    """The tables of all axes as one for the terminal."""
    table = Table(show_edge=False, pad_edge=False, caption="* the recipe's own value", caption_justify="left")
    table.add_column("axis", overflow="fold")
    for key, column in COLUMNS.items():
        header = NARROW_HEADERS.get(key) or fold_header(column.header, 19)
        table.add_column(header, justify="right", no_wrap=True, overflow="fold")
    for report in make_tables(results):
        table.add_row(report.title.partition(" (")[0], style="bold")
        for row in report.rows:
            table.add_row("  " + row[0].replace(" (recipe)", " *"), *row[1:])
        table.add_section()
    return table


def memorisation(results: Mapping) -> tuple[list[ReportTable], Plot] | None:
    """Tables and figure of the complete points along the number of checkpoints; `None` for fewer than two of them."""
    points = [results["points"][entry["point"]] for entry in results["axes"].get(MEMORISATION_AXIS, ())]
    points = [point for point in points if point["num_runs"]]
    if len(points) < 2:
        return None
    rows = [(str(point["groups"]["original"]["n"]), (point,)) for point in points]
    tables = [make_table("K", MEMORISATION_COLUMNS, rows, "Memorisation: the generated networks")]
    if any("generated" in point.get("population", {}) for point in points):
        tables.append(make_table("K", NOVELTY_COLUMNS, rows, "Memorisation: as functions, beside held-out originals"))
    names = [name for name in MEMORISATION_GROUPS if any(name in point["groups"] for point in points)]
    for key, title in SIMILARITIES.items():
        tables.append(make_table("K", [group_column(name, key, name=name, unit="") for name in names], rows, title))
    found = {
        point["groups"]["original"]["n"]: {
            name: GroupMetrics(**point["groups"][name]) for name in names if name in point["groups"]
        }
        for point in points
    }
    return tables, plot_memorisation(found)


def list_problems(results: Mapping) -> list[str]:
    """A line for every point of which a run failed."""
    return [f"{name}: {point['problem']}" for name, point in results["points"].items() if point["problem"]]


GENERATED = group_column("generated", "accuracy")


def _mean_or_status(point: Mapping) -> Value:
    """The generated networks' mean, or why it is not known."""
    return GENERATED.read(point) if point["num_runs"] else (point["status"], None)


def _memory(point: Mapping) -> Value:
    return max(point["peak_rss_mb"].values()) if point["num_runs"] else None, None


def _seconds(point: Mapping) -> Value:
    seconds = [point["seconds"][stage] for stage in GENERATOR_STAGES] if point["num_runs"] else [None]
    return None if None in seconds else sum(seconds), None


# fmt: off
COLUMNS = {
    "generated": Column("generated mean", "% (95 %)", _mean_or_status,
        lambda value, interval: value if isinstance(value, str) else in_percent(value, interval),
        "Mean test accuracy of the generated networks."),
    "difference": group_column("generated", "difference"),
    "selected": group_column("generated", "selected"),
    "original": group_column("original", "accuracy", name="originals").plain,
    "uniform_soup": group_column("uniform_soup", "accuracy", name="soup").plain,
    "explained": Column("variance explained", "%", at("explained_variance"), partial(in_percent, digits=1),
        "Variance of held-out checkpoints that the autoencoder explains."),
    "memory": Column("peak memory", "MB", _memory, in_format(".0f"),
        "Of the process up to the end of both training stages."),
    "seconds": Column("seconds", "", _seconds, in_format(".0f"),
        "Both training stages and drawing the networks."),
}
# fmt: on
# In the terminal, where all columns together have 120 characters.
NARROW_HEADERS = {
    "original": "orig-\ninals",
    "uniform_soup": "soup",
    "explained": "var.\nexpl.",
    "memory": "mem.\nMB",
    "seconds": "s",
}
MEMORISATION_COLUMNS = [
    *(group_column("generated", key) for key in ("difference", "iou_nearest")),
    group_column("original", "iou_nearest", name="IoU, originals").plain,
    *(group_column("generated", key) for key in ("yardsticks", "novel", "joint", "copies")),
]
# Of zoos of independent runs: as functions.
NOVELTY_COLUMNS = [population_column("generated", key) for key in ("near", "side", "copies", "disagreement_ratio")]
SIMILARITIES = {
    "iou_nearest": "Largest IoU of wrong predictions with one of the K checkpoints (95 %)",
    "yardsticks": "Distance to the nearest of the K checkpoints, in yardsticks (95 %)",
    "joint": "Novel and performant, % (95 %)",
}
