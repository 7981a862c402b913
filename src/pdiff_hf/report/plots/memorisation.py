"""Figure of memorisation: similarity to the checkpoints of a generator against their number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter

from ...evaluation.groups import label
from ...results.records import GroupMetrics
from ...results.tables import GROUP_COLUMNS
from ...results.text import percent
from .style import Plot, color, legend, new_figure, style

# By the column of the tables that they show.
PANELS = {
    "iou_nearest": "Largest IoU of mistakes",
    "yardsticks": "Distance to the nearest, yardsticks",
    "joint": "Novel and performant",
}
# Those that move with the generated networks; the others stand back.
LEADING = ("original", "generated", "unseen")


def plot_memorisation(found: Mapping[int, Mapping[str, GroupMetrics]]) -> Plot:
    """Similarity of generated networks and references to the K checkpoints, and the share that is new and good.

    Args:
        found (`Mapping[int, Mapping[str, GroupMetrics]]`): Groups by name, by K.
    """
    counts = list(found)
    names = list(dict.fromkeys(name for groups in found.values() for name in groups))
    curves = {(name, key): _curve(found, name, key) for name in names for key in PANELS}

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 2.6 if narrow else 3.5, columns=3)
        handles = {}
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
            for shift, name in enumerate(names):
                face, marker = style(name)
                centers, below, above = curves[name, key]
                is_leading = name in LEADING
                # Side by side, so that their bars do not hide each other.
                x = np.arange(len(counts)) + 0.06 * (shift - (len(names) - 1) / 2)
                handles[name] = axes.errorbar(
                    x,
                    centers,
                    [below, above],
                    color=face,
                    marker=marker,
                    markersize=5.5 if is_leading else 4,
                    linewidth=1.8 if is_leading else 1,
                    alpha=1 if is_leading else 0.75,
                    elinewidth=1,
                    capsize=2,
                )
            axes.set_xticks(range(len(counts)), [str(count) for count in counts])
            axes.margins(x=0.08)
            axes.set_title(title, loc="left", fontsize=9, color=color("text"))
            axes.set_xlabel("Checkpoints K")
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[1].yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        panels[2].set_ylim(-0.04, 1.04)
        panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    copied = [groups["generated"].novel_and_performant.copied for groups in found.values()]
    title = f"Copies among the generated networks: {percent(copied[0], digits=0)} with {counts[0]} checkpoints"
    title += f", {percent(copied[-1], digits=0)} with {counts[-1]}" if len(counts) > 1 else ""
    alt = "; ".join(
        f"K = {count}: " + ", ".join(f"{label(name)} {_text(curves[name, 'iou_nearest'][0][i])}" for name in names)
        for i, count in enumerate(counts)
    )
    note = "Every generator was trained on the first K checkpoints alone. Originals: each against the others; unseen: "
    note += "later checkpoints of the same run. The largest of K similarities grows with K for every network. Copy: "
    note += "nearer to a checkpoint than a third of a yardstick. Bars: 95 % intervals over networks."
    return Plot("memorisation", title, f"Line plots against K. Largest IoU of mistakes: {alt}.", note, draw)


def _curve(found: Mapping[int, Mapping], name: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and the lengths of their bars, NaN where nothing is known."""
    read = GROUP_COLUMNS[key].read
    values = [read(groups[name], groups["original"]) if name in groups else (None, None) for groups in found.values()]
    centers = np.array([value for value, _ in values], dtype=float)
    ends = np.array([interval or (value, value) for value, interval in values], dtype=float).T
    return centers, np.clip(centers - ends[0], 0, None), np.clip(ends[1] - centers, 0, None)


def _text(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "unknown"
