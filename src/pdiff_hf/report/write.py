"""Files of a report: `metrics.json`, `report.md`, `report.html` and figures; and the table in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table

from ..evaluation.evaluate import EvaluationResult
from ..files import atomic_write, write_json
from ..machine import describe_hardware
from ..results.metrics import METRICS_FILE, TRAJECTORY_FILE, Metrics
from ..results.tables import fold_header, group_table
from ..results.tasks_table import accuracy_table
from ..results.text import ReportTable
from .plots.curves import plot_ensembles, plot_loss_curves
from .plots.maps import plot_iou_matrix, plot_latent_pca
from .plots.networks import plot_accuracy_histograms, plot_accuracy_similarity
from .plots.population import plot_population
from .plots.style import Plot
from .plots.tasks import plot_condition_map, plot_task_by_task, plot_unseen_tasks
from .plots.trajectory import plot_trajectory, plot_trajectory_plane
from .render import make_html, make_markdown
from .sections import distribution_line, make_sections

PACKAGES = ("pdiff-hf", "torch", "diffusers", "transformers", "accelerate", "datasets", "timm")
# Columns of the terminal's table, and the narrowest width that keeps a number and its interval on one line, so that it
# fits into 120 characters.
NAME_WIDTH = 13
TERMINAL_WIDTHS = {"networks": 3, "accuracy": 19, "difference": 23, "selected": 19, "iou_nearest": 7, "joint": 10}
# Scores have more digits, and no predictions beside them.
SCORE_WIDTHS = {"networks": 3, "accuracy": 23, "difference": 31, "selected": 23, "joint": 10}
NARROW_HEADERS = {"networks": "n", "joint": "novel and\nperformant\n(%)"}


def write_report(
    result: EvaluationResult,
    output_dir: str | Path,
    *,
    task: Mapping | None = None,
    timings_s: Mapping[str, float] | None = None,
    peak_rss_mb: Mapping[str, float] | None = None,
    peak_device_mb: Mapping[str, float] | None = None,
    gate: Mapping | None = None,
    logs: Mapping[str, str | Path] | None = None,
    latents: Mapping[str, torch.Tensor] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    trajectory: Mapping | None = None,
) -> list[Path]:
    """Write `metrics.json`, `report.md`, `report.html` and the figures of an evaluation; returns the files.

    Args:
        result ([`EvaluationResult`]): What was found.
        output_dir (`str` or `Path`): Folder, made when missing.
        task, timings_s, peak_rss_mb, peak_device_mb (`Mapping`, *optional*): Of [`Metrics`].
        gate (`Mapping`, *optional*): Reconstruction figures of the autoencoder (`reconstruction.json`).
        logs (`Mapping[str, str | Path]`, *optional*): `train_log.jsonl` files by stage.
        latents (`Mapping[str, torch.Tensor]`, *optional*): Latents `(n, C * L)` of `original` and other groups.
        names (`Mapping[str, Sequence[str]]`, *optional*): What networks of a group are called, such as files; others
            have numbers.
        trajectory (`Mapping`, *optional*): Of [`trajectory`], to be shown and kept in `trajectory.json`.
    """
    costs = {"timings_s": timings_s, "peak_rss_mb": peak_rss_mb, "peak_device_mb": peak_device_mb}
    metrics = _with_origin(result.metrics, task, costs)
    plots = [
        plot_accuracy_similarity(metrics, result.groups, names),
        plot_population(metrics),
        plot_accuracy_histograms(metrics, result.groups),
        plot_latent_pca(latents or {}, metrics, result.groups, names),
        None if result.iou is None else plot_iou_matrix(result.iou, result.iou_sizes),
        plot_ensembles(metrics.ensembles),
        plot_loss_curves(logs or {}),
    ]
    if trajectory is not None:
        plots += [plot_trajectory(trajectory), plot_trajectory_plane(trajectory)]
        write_json(Path(output_dir) / TRAJECTORY_FILE, trajectory)
    written = _write(metrics, [plot for plot in plots if plot is not None], gate, output_dir)
    return written if trajectory is None else [*written, Path(output_dir) / TRAJECTORY_FILE]


def write_task_report(
    metrics: Metrics,
    output_dir: str | Path,
    *,
    task: Mapping | None = None,
    gate: Mapping | None = None,
    logs: Mapping[str, str | Path] | None = None,
    latents: tuple[Mapping, Mapping, Mapping] | None = None,
    **costs: Mapping[str, float] | None,
) -> list[Path]:
    """Write the same files of networks for unseen tasks, [`Metrics.tasks`]; returns them.

    Arguments are those of [`write_report`], `timings_s`, `peak_rss_mb` and `peak_device_mb` among them; `latents`
    those of [`plot_condition_map`], with the names.
    """
    metrics = _with_origin(metrics, task, costs)
    plots = [plot_unseen_tasks(metrics), plot_task_by_task(metrics), plot_loss_curves(logs or {})]
    plots.append(None if latents is None else plot_condition_map(*latents))
    return _write(metrics, [plot for plot in plots if plot is not None], gate, output_dir)


def _with_origin(metrics: Metrics, task: Mapping | None, costs: Mapping[str, Mapping | None]) -> Metrics:
    """Metrics that say of which task, machine, versions and day they are, and what making the networks took."""
    return metrics.model_copy(
        update={
            "task": dict(task or {}),
            **{name: dict(values or {}) for name, values in costs.items()},
            "versions": {package: version(package) for package in PACKAGES},
            "hardware": describe_hardware(),
            "date": datetime.now(UTC).date().isoformat(),
        }
    )


def write_summary(metrics: Metrics, output_dir: str | Path) -> list[Path]:
    """Write `metrics.json`, `report.md`, `report.html` and the figure of what several seeds found together.

    Returns the files.
    """
    if metrics.tasks is not None:
        plots = [plot_unseen_tasks(metrics), plot_task_by_task(metrics)]
    else:
        plots = [plot_accuracy_similarity(metrics), plot_population(metrics)]
    return _write(metrics, [plot for plot in plots if plot is not None], None, output_dir)


def make_table(metrics: Metrics) -> Table:
    """Make the terminal's table of groups, with the verdict below, and whether it is the distribution."""
    options = {"caption_justify": "left", "caption_style": "bold", "show_edge": False, "pad_edge": False}
    lines = [line for line in (metrics.verdict, distribution_line(metrics)) if line]
    table = Table(caption="\n".join(lines), **options)
    if metrics.tasks is not None:
        return _add_rows(table, accuracy_table(metrics))
    widths = TERMINAL_WIDTHS if metrics.metric.is_accuracy else SCORE_WIDTHS
    found = group_table(metrics, list(widths), plain=("iou_nearest", "joint"), all_columns=True)
    table.add_column("group", no_wrap=True, min_width=NAME_WIDTH)
    for header, (key, width) in zip(found.columns[1:], widths.items(), strict=True):
        table.add_column(NARROW_HEADERS.get(key) or fold_header(header, width), justify="right", min_width=width)
    for name, *cells in found.rows:
        table.add_row(_fold_name(name), *cells, style="bold" if name == "generated" else None)
    return table


def _fold_name(name: str) -> str:
    """A group's name in lines of [`NAME_WIDTH`], of a long one the first word in a line of its own."""
    first, *words = re.findall(r"[^_]*_|[^_]+$", name)
    if len(name) <= NAME_WIDTH or not words:
        return name
    lines = [first, f" {words[0]}"]
    for word in words[1:]:
        if len(lines[-1] + word) <= NAME_WIDTH:
            lines[-1] += word
        else:
            lines.append(f" {word}")
    return "\n".join(lines)


def _add_rows(table: Table, found: ReportTable) -> Table:
    for column in found.columns:
        table.add_column(column.replace(" (95 %)", ""), justify="left" if column == found.columns[0] else "right")
    for name, *cells in found.rows:
        table.add_row(name, *cells, style="bold" if name == "generated" else None)
    return table


def _write(metrics: Metrics, plots: Sequence[Plot], gate: Mapping | None, output_dir: str | Path) -> list[Path]:
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = make_sections(metrics, gate, [plot.name for plot in plots])
    metrics.write(output_dir / METRICS_FILE)
    texts = {"report.md": make_markdown(metrics, sections, plots), "report.html": make_html(metrics, sections, plots)}
    for name, text in texts.items():
        with atomic_write(output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*(output_dir / name for name in (METRICS_FILE, *texts)), *(plot.save_png(output_dir) for plot in plots)]
