"""The figures of a report. Object-oriented matplotlib with the Agg canvas: no global state, no display."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..files import atomic_write
from .evaluate import EvaluationResult, GroupEvaluation

# Okabe and Ito's colours and a grey, distinguishable with every kind of colour blindness; a marker each, for print.
STYLES = {
    "original": ("#0072B2", "o"),
    "reconstructed": ("#7F7F7F", "s"),
    "generated": ("#D55E00", "D"),
    "uniform_soup": ("#000000", "*"),
    "noise_0.05": ("#009E73", "^"),
    "noise_0.1": ("#CC79A7", "v"),
    "average_16": ("#882255", "*"),
    "gaussian": ("#56B4E9", "X"),
    "pca_gaussian": ("#0B4F6C", "P"),
    "interpolation": ("#8C6D1F", "h"),
}
OTHER_STYLE = ("#E69F00", "P")
TEXT = "#333333"
GRID = "#E5E5E5"


def plot_accuracy_similarity(result: EvaluationResult, path: str | Path) -> None:
    """Draw test accuracy against the IoU of wrong predictions with the nearest original, one point per network.

    Large markers are group means; their bars are 95 % intervals of the difference to the originals' mean (dashed
    line), so a bar that stays clear of the line is a real difference. Names stand at the right edge, tied to their
    group by a thin line.

    Args:
        result ([`EvaluationResult`]): Of [`evaluate_groups`].
        path (`str` or `Path`): PNG to write.
    """
    figure, (axes,) = _figure(8.6, 5.0)
    groups = {name: group for name, group in result.groups.items() if group.iou_max.isfinite().all()}
    for name, group in groups.items():
        color, marker = STYLES.get(name, OTHER_STYLE)
        if len(group.test_accuracy) > 1:
            points = group.iou_max.numpy(), 100 * group.test_accuracy.numpy()
            axes.scatter(*points, s=16, color=color, marker=marker, alpha=0.3, linewidths=0)
    reference = 100 * result.groups["original"].test_accuracy.mean().item()
    axes.axhline(reference, color=STYLES["original"][0], linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    for name, group in groups.items():
        color, marker = STYLES.get(name, OTHER_STYLE)
        x, y = _center(group)
        if name != "original":
            low, high = (reference + 100 * bound for bound in group.difference_to_original["ci95"])
            axes.errorbar(x, y, [[y - low], [high - y]], color=color, linewidth=1.6, capsize=4, zorder=3)
        size = 200 if marker == "*" else 80
        axes.scatter(x, y, s=size, color=color, marker=marker, edgecolors="white", linewidths=1.2, zorder=4)
    axes.set_xlabel(
        "Similarity to the nearest original: IoU of wrong predictions (1 = the same mistakes)\n"
        "Bars: 95 % interval of the difference to the originals' mean (dashed), on the same test images"
    )
    axes.set_ylabel("Test accuracy")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.margins(x=0.05, y=0.06)
    axes.set_title("Are they good, and are they new?", loc="left", color=TEXT, fontsize=13, fontweight="bold", pad=12)
    _label_at_right_edge(axes, groups)
    _save(figure, path)


def plot_loss_curves(logs: dict[str, str | Path], path: str | Path) -> None:
    """Draw the training loss of every stage, as logged and smoothed over 5 % of its steps.

    Args:
        logs (`dict[str, str | Path]`): `train_log.jsonl` with lines `{"step", "loss", …}`, by the title of its panel.
        path (`str` or `Path`): PNG to write.
    """
    figure, panels = _figure(4.6 * len(logs), 3.6, len(logs))
    for axes, (title, log) in zip(panels, logs.items(), strict=True):
        lines = [json.loads(line) for line in Path(log).read_text(encoding="utf-8").splitlines() if line]
        steps = np.array([line["step"] for line in lines])
        losses = np.array([line["loss"] for line in lines])
        width = max(1, len(losses) // 20)
        ones = np.ones(width)
        # Dividing by the number of values under the window keeps both ends unbiased.
        smooth = np.convolve(losses, ones, "same") / np.convolve(np.ones_like(losses), ones, "same")
        axes.plot(steps, losses, color="#56B4E9", alpha=0.5, linewidth=0.8)
        axes.plot(steps, smooth, color="#0072B2", linewidth=2)
        axes.set_yscale("log")
        axes.set_xlabel("Step")
        axes.set_ylabel("Loss (mean squared error)")
        axes.set_title(title, loc="left", color=TEXT, fontsize=12, fontweight="bold")
        axes.set_title(f"ends at {smooth[-1]:.3g}", loc="right", color="#0072B2", fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=TEXT, which="both")
        axes.xaxis.label.set_color(TEXT)
        axes.yaxis.label.set_color(TEXT)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format="png")


def _center(group: GroupEvaluation) -> tuple[float, float]:
    return group.iou_max.mean().item(), 100 * group.test_accuracy.mean().item()


def _label_at_right_edge(axes, groups: dict[str, GroupEvaluation]) -> None:
    """Write group names beside the plot, spread so that none overlap, and tie each to its group's mean."""
    bottom, top = axes.get_ylim()
    centers = {name: _center(group) for name, group in groups.items()}
    names = sorted(centers, key=lambda name: centers[name][1])
    heights = [(centers[name][1] - bottom) / (top - bottom) for name in names]
    gap = 0.06
    # Push up from below, then down from above: the order stays and neighbours keep their distance.
    for i in range(len(heights)):
        heights[i] = max(heights[i], 0.03 if i == 0 else heights[i - 1] + gap)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 0.97 if i == len(heights) - 1 else heights[i + 1] - gap)
    for name, height in zip(names, heights, strict=True):
        color, _ = STYLES.get(name, OTHER_STYLE)
        axes.annotate(
            f"{name.replace('_', ' ')}  {centers[name][1]:.2f} %",
            centers[name],
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=color,
            fontsize=10,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.7,
                "alpha": 0.5,
                "shrinkB": 6,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
