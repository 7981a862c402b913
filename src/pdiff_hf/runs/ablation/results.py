"""Results of an ablation: numbers of every point, and the files people and programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from ...evaluation.summary import aggregate_seeds
from ...evaluation.verdict import make_verdict
from ...files import atomic_write, read_json, write_json
from ...report.plots.ablation import plot_ablation
from ...report.write import PACKAGES
from ...results.text import MISSING, ReportTable, markdown_table, number, percent, points
from ..folder import GATE_FILE, Run
from .axes import AXES
from .execute import problem_of
from .plan import Job, Plan, make_jobs

SCHEMA = 1
COLUMNS = (
    "value",
    "generated mean, % (95 %)",
    "minus originals, points (95 %)",
    "best on val, % (95 %)",
    "originals, %",
    "soup, %",
    "variance explained, %",
    "peak memory, MB",
    "seconds",
)
NOTES = (
    "Generated: mean test accuracy of the generated networks. Best: the generated network that is best on val, its "
    "accuracy on test. Originals: their mean, of this point's own checkpoints; soup: their uniform average.",
    "Variance explained: of held-out checkpoints by decode(encode(x)). Peak memory: of the process up to the end of "
    "both training stages, with Python and its libraries, so that differences between points tell more than its size. "
    "Seconds: both training stages and drawing the networks.",
)
IMAGES = "Intervals are over test images and networks; the best network's is exact (Clopper-Pearson)."
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
    metrics = [read_json(run.path("evaluate") / "metrics.json") for run in complete.values()]
    together = metrics[0] if len(metrics) == 1 else aggregate_seeds(dict(zip(complete, metrics, strict=True)))
    gates = [read_json(run.path("autoencoder") / GATE_FILE) for run in complete.values()]
    groups = together["groups"]
    generated, original = groups["generated"], groups["original"]
    timings = [value["timings_s"] for value in metrics]
    return {
        **summary,
        "num_parameters": together["num_parameters"],
        "num_checkpoints": original["n"],
        "num_generated": generated["n"],
        "generated": _accuracy(generated),
        "best": generated["selected"],
        "difference_to_original": generated["difference_to_original"],
        "original": _accuracy(original),
        "best_original": original["selected"],
        "uniform_soup": _accuracy(groups["uniform_soup"]),
        "novel_and_performant": generated["novel_and_performant"]["joint"]["1x"],
        "explained_variance": _mean([gate["explained_variance"] for gate in gates]),
        "accuracy_drop": _mean([gate.get("accuracy_drop") for gate in gates]),
        "peak_rss_mb": {
            stage: max(value["peak_rss_mb"][stage] for value in metrics) for stage in ("autoencoder", "diffusion")
        },
        "seconds": {stage: _mean([times.get(stage) for times in timings]) for stage in timings[0]},
        "finding": together.get("finding") or make_verdict(together)[0],
    }


def write_results(results: Mapping, folder: str | Path) -> list[Path]:
    """Write `ablation.json`, `ablation.md` and a figure for each axis; returns the files."""
    folder = Path(folder)
    plots = [plot_ablation(axis, results) for axis in results["axes"]]
    lines = [f"# Ablation of {results['recipe']}", ""]
    for line in (*NOTES, SEEDS.format(seeds=results["seeds"]) if len(results["seeds"]) > 1 else IMAGES):
        lines += [line, ""]
    for table, plot in zip(make_tables(results), [*plots, *[None] * results["grid"]], strict=True):
        lines += [*markdown_table(table), ""]
        if plot is not None:
            lines += [f"![{plot.alt}]({plot.name}.png)", "", plot.note, ""]
    if problems := list_problems(results):
        lines += ["## Problems", "", *(f"- {problem}" for problem in problems), ""]
    lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items()), ""]
    write_json(folder / "ablation.json", results)
    with atomic_write(folder / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return [folder / "ablation.json", folder / "ablation.md", *(plot.save_png(folder) for plot in plots)]


def make_tables(results: Mapping) -> list[ReportTable]:
    """A table for each axis, and for a grid one of all points."""
    tables = []
    for axis, entries in results["axes"].items():
        rows = []
        for entry in entries:
            is_base = entry["value"] == results["base"][axis]
            name = f"{entry['value']} (recipe)" if is_base else entry["value"]
            rows.append([name, *_cells(results["points"][entry["point"]])])
        help_text = f" ({AXES[axis].help})" if axis in AXES else ""
        tables.append(ReportTable(COLUMNS, rows, f"{axis}{help_text}"))
    if results["grid"]:
        rows = [[", ".join(p["values"].values()), *_cells(p)] for p in results["points"].values()]
        tables.append(ReportTable((", ".join(results["axes"]), *COLUMNS[1:]), rows, "All combinations"))
    return tables


def make_terminal_table(results: Mapping) -> Table:
    """The tables of all axes as one for the terminal."""
    table = Table(show_edge=False, pad_edge=False, caption="* the recipe's own value", caption_justify="left")
    headers = [
        "axis",
        "generated\nmean, % (95 %)",
        "minus originals,\npoints (95 %)",
        "best on val,\n% (95 %)",
        "orig-\ninals",
        "soup",
        "var.\nexpl.",
        "mem.\nMB",
        "s",
    ]
    for column, header in enumerate(headers):
        table.add_column(header, justify="right" if column else "left", no_wrap=column > 0, overflow="fold")
    for report in make_tables(results):
        table.add_row(report.title.partition(" (")[0], style="bold")
        for row in report.rows:
            table.add_row("  " + row[0].replace(" (recipe)", " *"), *row[1:])
        table.add_section()
    return table


def list_problems(results: Mapping) -> list[str]:
    """A line for every point of which a run failed."""
    return [f"{name}: {point['problem']}" for name, point in results["points"].items() if point["problem"]]


def _cells(point: Mapping) -> list[str]:
    if not point["num_runs"]:
        return [point["status"], *[MISSING] * (len(COLUMNS) - 2)]
    generated, best, difference = (point[key] for key in ("generated", "best", "difference_to_original"))
    generator = [point["seconds"][stage] for stage in ("autoencoder", "diffusion", "generate")]
    return [
        percent(generated["mean"], generated["ci95"], unit=""),
        points(difference["difference"], difference["ci95"]),
        percent(best["test_accuracy"], best["test_ci95"], unit=""),
        percent(point["original"]["mean"], unit=""),
        percent(point["uniform_soup"]["mean"], unit=""),
        percent(point["explained_variance"], digits=1, unit=""),
        number(max(point["peak_rss_mb"].values()), ".0f"),
        number(sum(generator), ".0f") if None not in generator else MISSING,
    ]


def _accuracy(group: Mapping) -> dict[str, Any]:
    return {key: group["test_accuracy"][key] for key in ("mean", "std", "ci95")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
