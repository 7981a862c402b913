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
from ...report.write import PACKAGES
from ...results.columns import GROUP_COLUMNS, Column, Value, at, in_format, in_percent
from ...results.metrics import METRICS_FILE, Metrics
from ...results.records import GroupMetrics
from ...results.tables import fold_header, make_table
from ...results.text import ReportTable, markdown_table
from ..evaluate import GENERATOR_STAGES
from ..folder import GATE_FILE, Run
from .axes import AXES
from .execute import problem_of
from .memorisation import NOTES as MEMORISATION_NOTES
from .memorisation import memorisation, similarity_of
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


def collect_results(plan: Plan, folder: str | Path) -> dict[str, Any]:
    """Read what the runs of an ablation have written; the content of `ablation.json`.

    Args:
        plan ([`Plan`]): The ablation.
        folder (`str` or `Path`): Its folder.
    """
    folder, by_point = Path(folder), {}
    for job in make_jobs(plan):
        by_point.setdefault(job.point.name, []).append(job)
    found = {}
    for point in plan.points:
        summary = summarize_point(by_point[point.name], folder)
        found[point.name] = {"values": point.values, "changes": point.changes, **summary}
    axes = {axis: [{"value": value, "point": point.name} for value, point in plan.on_axis(axis)] for axis in plan.axes}
    return {
        "schema": SCHEMA,
        "recipe": plan.recipe,
        **plan.options,
        "seeds": plan.seeds,
        "grid": plan.grid,
        "base": plan.base,
        "axes": axes,
        "points": found,
        "versions": {package: version(package) for package in PACKAGES},
    }


def summarize_point(jobs: Sequence[Job], folder: Path) -> dict[str, Any]:
    """The numbers of one point: those of its run, or means over its seeds.

    Args:
        jobs (`Sequence[Job]`): Its runs.
        folder (`Path`): Of the ablation.

    Returns:
        `dict`: `status`: `complete`, `failed` when a run has a problem, else `incomplete`; `problem`; `num_runs` of
        those that are complete; and unless there are none, their numbers.
    """
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
    generated, original = together.generated, together.original
    return {
        **summary,
        "num_parameters": together.num_parameters,
        "num_checkpoints": original.n,
        "num_generated": generated.n,
        "generated": _accuracy(generated),
        "best": generated.selected.to_dict(),
        "difference_to_original": generated.difference_to_original.to_dict(),
        "original": _accuracy(original),
        "best_original": original.selected.to_dict(),
        "uniform_soup": _accuracy(together.groups["uniform_soup"]),
        "novel_and_performant": generated.novel_and_performant.joint["1x"],
        "explained_variance": _mean([gate["explained_variance"] for gate in gates]),
        "accuracy_drop": _mean([gate.get("accuracy_drop") for gate in gates]),
        "peak_rss_mb": {
            stage: max(value.peak_rss_mb[stage] for value in metrics) for stage in ("autoencoder", "diffusion")
        },
        "seconds": {stage: _mean([value.timings_s.get(stage) for value in metrics]) for stage in metrics[0].timings_s},
        "similarity": similarity_of(together),
        "finding": together.finding or make_verdict(together)[0],
    }


def write_results(results: Mapping, folder: str | Path) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and a figure for each axis; returns the files."""
    folder = Path(folder)
    plots = [plot_ablation(axis, results) for axis in results["axes"]]
    lines = [f"# Ablation of {results['recipe']}", ""]
    for line in (*NOTES, SEEDS.format(seeds=results["seeds"]) if len(results["seeds"]) > 1 else ONE_RUN):
        lines += [line, ""]
    for table, plot in zip(make_tables(results), [*plots, *[None] * results["grid"]], strict=True):
        lines += [*markdown_table(table), ""]
        if plot is not None:
            lines += [f"![{plot.alt}]({plot.name}.png)", "", plot.note, ""]
    if found := memorisation(results):
        tables, plot = found
        plots.append(plot)
        lines += ["## Memorisation", "", f"![{plot.alt}]({plot.name}.png)", "", plot.note, ""]
        for table in tables:
            lines += [*markdown_table(table), ""]
        lines += [*(f"- {note}" for note in MEMORISATION_NOTES), ""]
    if problems := list_problems(results):
        lines += ["## Problems", "", *(f"- {problem}" for problem in problems), ""]
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


def list_problems(results: Mapping) -> list[str]:
    """A line for every point of which a run failed."""
    return [f"{name}: {point['problem']}" for name, point in results["points"].items() if point["problem"]]


def _accuracy(group: GroupMetrics) -> dict[str, Any]:
    accuracy = group.test_accuracy
    return {"mean": accuracy.mean, "std": accuracy.std, "ci95": accuracy.ci95}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _group(name: str, point: Mapping) -> tuple[GroupMetrics, GroupMetrics]:
    """A group of a point, and its originals; nothing is known of them when no run of it is complete."""
    if not point["num_runs"]:
        return GroupMetrics(), GroupMetrics()
    # Only of the generated ones there is more than the mean.
    rest = {"selected": point["best"], "difference_to_original": point["difference_to_original"]}
    group = GroupMetrics(test_accuracy=point[name], **(rest if name == "generated" else {}))
    return group, GroupMetrics(test_accuracy=point["original"])


def _mean_or_status(point: Mapping) -> Value:
    """The generated networks' mean, or why it is not known."""
    column = GROUP_COLUMNS["accuracy"]
    return column.read(*_group("generated", point)) if point["num_runs"] else (point["status"], None)


def _memory(point: Mapping) -> Value:
    return max(point["peak_rss_mb"].values()) if point["num_runs"] else None, None


def _seconds(point: Mapping) -> Value:
    seconds = [point["seconds"][stage] for stage in GENERATOR_STAGES] if point["num_runs"] else [None]
    return None if None in seconds else sum(seconds), None


def _of(group: str, key: str, **changes: str) -> Column:
    return GROUP_COLUMNS[key].of(partial(_group, group), **changes)


# fmt: off
COLUMNS = {
    "generated": Column("generated mean", "% (95 %)", _mean_or_status,
        lambda value, interval: value if isinstance(value, str) else in_percent(value, interval),
        "Mean test accuracy of the generated networks."),
    "difference": _of("generated", "difference"),
    "selected": _of("generated", "selected"),
    "original": _of("original", "accuracy", name="originals").plain,
    "uniform_soup": _of("uniform_soup", "accuracy", name="soup").plain,
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
