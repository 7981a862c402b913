"""What people and programs read: `metrics.json`, `report.md`, plots and the table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from ..files import atomic_write, write_json
from .evaluate import EvaluationResult
from .plots import plot_accuracy_similarity, plot_loss_curves

PACKAGES = ("pdiff-hf", "torch", "diffusers", "transformers", "accelerate", "datasets", "timm")
COLUMNS = (
    "group",
    "n",
    "mean accuracy, % (95 % interval)",
    "std",
    "best on val, % (95 % interval)",
    "NLL",
    "ECE",
    "IoU to nearest original",
    "L2 to nearest original",
    "novel and performant",
)
# Without those that few look at first, so that the table fits into 100 characters.
TERMINAL_COLUMNS = tuple(column for column in COLUMNS if column not in ("std", "NLL", "ECE"))


def write_report(
    result: EvaluationResult,
    output_dir: str | Path,
    *,
    task: Mapping | None = None,
    timings_s: Mapping[str, float] | None = None,
    peak_rss_mb: Mapping[str, float] | None = None,
    gate: Mapping | None = None,
    logs: Mapping[str, str | Path] | None = None,
) -> list[Path]:
    """Write `metrics.json`, `report.md` and the plots of an evaluation.

    Args:
        result ([`EvaluationResult`]): Of [`evaluate_groups`].
        output_dir (`str` or `Path`): Folder, made when missing.
        task (`Mapping`, *optional*): What was learned, for `metrics.json`.
        timings_s (`Mapping[str, float]`, *optional*): Wall time by stage.
        peak_rss_mb (`Mapping[str, float]`, *optional*): Peak memory by stage.
        gate (`Mapping`, *optional*): Reconstruction figures of the autoencoder (`reconstruction.json`).
        logs (`Mapping[str, str | Path]`, *optional*): `train_log.jsonl` files by stage.

    Returns:
        `list[Path]`: the files written.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = {
        **result.metrics,
        "task": dict(task or {}),
        "timings_s": dict(timings_s or {}),
        "peak_rss_mb": dict(peak_rss_mb or {}),
        "versions": {package: version(package) for package in PACKAGES},
    }
    plots = [output_dir / "accuracy_similarity.png"]
    plot_accuracy_similarity(result, plots[0])
    if logs:
        plots.append(output_dir / "loss_curves.png")
        plot_loss_curves(dict(logs), plots[-1])
    write_json(output_dir / "metrics.json", metrics)
    with atomic_write(output_dir / "report.md") as temporary:
        temporary.write_text(make_markdown(metrics, gate, [plot.name for plot in plots]), encoding="utf-8")
    return [output_dir / "metrics.json", output_dir / "report.md", *plots]


def make_markdown(metrics: Mapping, gate: Mapping | None, plots: list[str]) -> str:
    """Write the text of `report.md` from `metrics.json`'s content, the gate's figures and the names of the plots."""
    lines = ["# Evaluation", "", f"**{metrics['verdict']}**", ""]
    lines += [
        f"{metrics['num_parameters']:,} generated parameters, {metrics['num_test']:,} test images. Networks are "
        "chosen on the validation images and reported on the test images.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" + " ---: |" * (len(COLUMNS) - 1),
    ]
    lines += ["| " + " | ".join(_row(name, group)) + " |" for name, group in metrics["groups"].items()]
    lines += [
        "",
        "Interval of a mean: over the choice of test images and of networks. Interval of the best on val: exact "
        "(Clopper-Pearson). IoU: of wrong predictions with the most similar original, mean over networks; 1 means the "
        "same mistakes. Originals are compared with the other originals.",
        "",
        "## Novelty",
        "",
    ]
    yardstick = metrics["groups"]["original"]["similarity"]["l2_nearest_mean"]
    if yardstick is None:
        lines += ["With one original there is no distance among originals to compare with."]
    else:
        lines += [
            f"The distance of an original to its nearest other original is {yardstick:.4g} on average. A network is "
            "novel at 2x when it is farther than twice that from every original, and performant when its test "
            "accuracy is not below the originals' mean.",
            "",
            "| group | performant | novel at 1x / 2x / 4x | both at 1x / 2x / 4x |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, group in metrics["groups"].items():
            scores = group["novel_and_performant"]
            novel, joint = (" / ".join(f"{x:.0%}" for x in scores[key].values()) for key in ("novel", "joint"))
            lines.append(f"| {name} | {scores['performant']:.0%} | {novel} | {joint} |")
    if metrics["comparisons"]:
        lines += [
            "",
            "## Generated minus",
            "",
            "| group | points of accuracy (95 % interval) |",
            "| --- | ---: |",
        ]
        for name, comparison in metrics["comparisons"].items():
            low, high = comparison["ci95"]
            text = f"{100 * comparison['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            lines.append(f"| {name} | {text} |")
    if gate:
        lines += [
            "",
            "## Reconstruction",
            "",
            f"- explained variance of held-out rows: {gate['explained_variance']:.1%}",
        ]
        if "accuracy_drop" in gate:
            lines.append(f"- accuracy lost by reconstruction: {100 * gate['accuracy_drop']:.2f} points")
    lines += ["", "## Plots", "", *(f"![{Path(plot).stem.replace('_', ' ')}]({plot})" for plot in plots)]
    if metrics["timings_s"]:
        lines += ["", "## Cost", "", "| stage | seconds | peak memory (MB) |", "| --- | ---: | ---: |"]
        for stage, seconds in metrics["timings_s"].items():
            memory = metrics["peak_rss_mb"].get(stage)
            lines.append(f"| {stage} | {seconds:.1f} | {'' if memory is None else f'{memory:.0f}'} |")
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()), ""]
    return "\n".join(lines)


def make_table(metrics: Mapping) -> Table:
    """Make the terminal's table of groups, with the verdict below, from `metrics.json`'s content."""
    table = Table(caption=metrics["verdict"], caption_justify="left", caption_style="bold")
    columns = [COLUMNS.index(column) for column in TERMINAL_COLUMNS]
    for column in TERMINAL_COLUMNS:
        is_first = column == "group"
        # An accuracy and its interval stay on one line; the headers wrap instead.
        min_width = 19 if "interval" in column else None
        table.add_column(column, justify="left" if is_first else "right", no_wrap=is_first, min_width=min_width)
    for name, group in metrics["groups"].items():
        row = _row(name, group)
        table.add_row(*(row[column] for column in columns), style="bold" if name == "generated" else None)
    return table


def _row(name: str, group: Mapping) -> tuple[str, ...]:
    accuracy, selected, similarity = group["test_accuracy"], group["selected"], group["similarity"]
    return (
        name,
        str(group["n"]),
        _percent(accuracy["mean"], accuracy["ci95"]),
        f"{100 * accuracy['std']:.2f}",
        _percent(selected["test_accuracy"], selected["test_ci95"]),
        _number(group["test_nll"]["mean"], ".4f"),
        _number(group["test_ece"]["mean"], ".4f"),
        _number(similarity["iou_max_mean"], ".3f"),
        _number(similarity["l2_nearest_mean"], ".4g"),
        f"{group['novel_and_performant']['joint']['1x']:.0%}",
    )


def _percent(value: float, interval: list[float]) -> str:
    return f"{100 * value:.2f} ({100 * interval[0]:.2f}–{100 * interval[1]:.2f})"


def _number(value: float | None, fmt: str) -> str:
    return "-" if value is None else format(value, fmt)
