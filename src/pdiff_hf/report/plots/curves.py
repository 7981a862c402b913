"""Figures with a line for every group or stage: ensembles, memorisation and losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ...evaluation.groups import label
from ...results.columns import Value
from ...results.records import Ensemble, GroupMetrics
from ...results.tables import GROUP_COLUMNS
from ...results.text import number, percent
from .points import Points, tag
from .style import Plot, color, handle, legend, new_figure, style

NOTHING: Value = (None, None)
METRICS = {"accuracy": "Accuracy (higher is better)", "nll": "NLL (lower is better)", "ece": "ECE (lower is better)"}
BEST_SINGLE = "best single network"
# By the column of the tables that they show.
PANELS = {
    "iou_nearest": "Largest IoU of mistakes",
    "yardsticks": "Distance to the nearest, yardsticks",
    "joint": "Novel and performant",
}
# Those that move with the generated networks; the others stand back.
LEADING = ("original", "generated", "unseen")


def plot_ensembles(ensembles: Mapping[str, Mapping[str, Ensemble]]) -> Plot | None:
    """Accuracy, NLL and ECE of ensembles by group and number of networks, as in [`Metrics`]; `None` without any."""
    single = ensembles.get("best_single", {}).get("1")
    groups = {name: values for name, values in ensembles.items() if name != "best_single" and values}
    if not groups:
        return None
    sizes = sorted({int(size) for values in groups.values() for size in values})

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 2.3 if narrow else 3.1, columns=3)
        handles = {}
        for axes, (metric, title) in zip(panels, METRICS.items(), strict=True):
            scale = 100 if metric == "accuracy" else 1
            for place, (name, values) in enumerate(groups.items()):
                found = [getattr(values.get(str(size), Ensemble()), metric) for size in sizes]
                known = [(scale * mean.mean, scale * np.array(mean.ci95)) if mean.ci95 else NOTHING for mean in found]
                if any(value is not NOTHING for value in known):
                    shift = 0.14 * (place - (len(groups) - 1) / 2)
                    drawn = _draw_line(axes, name, known, shift, markersize=5, linewidth=1.8)
                    tag(drawn.get_children(), name)
                    tag(drawn.lines[0], name, metric)
                    handles[name] = handle(name)
            if single and getattr(single, metric).mean is not None:
                line = {"color": color("muted"), "linewidth": 1.2, "linestyle": (0, (4, 3))}
                handles[BEST_SINGLE] = axes.axhline(scale * getattr(single, metric).mean, **line)
                tag(handles[BEST_SINGLE], BEST_SINGLE)
            axes.set_title(title, loc="left", fontsize=9, color=color("text"))
            axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
            axes.margins(x=0.12)
            if metric == "accuracy":
                axes.yaxis.set_major_formatter("{x:g} %")
        for axes in panels[-1:] if narrow else panels:
            axes.set_xlabel("Networks in the ensemble")
        if handles:
            legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    largest = max(sizes, key=lambda size: (sum(str(size) in values for values in groups.values()), size))
    reached = {name: values[str(largest)] for name, values in groups.items() if str(largest) in values}
    parts = [f"{label(name)} {percent(value.accuracy.mean)}" for name, value in reached.items()]
    title = f"{'Ensembles of ' + str(largest) if largest > 1 else 'Single networks'}: {', '.join(parts)}"
    alt = "; ".join(
        f"{label(name)} with {size}: accuracy {percent(value.accuracy.mean)}, NLL {number(value.nll.mean, '.4f')}, "
        f"ECE {number(value.ece.mean, '.4f')}"
        for name, values in ensembles.items()
        for size, value in values.items()
    )
    note = "Average of the probabilities of 1 to M networks, against the best single network on val. Bars: 95 % "
    note += "intervals over test examples and draws; the examples are the same for all, so differences are surer than "
    note += "the bars suggest."
    points = {
        (metric, name): Points(
            label(name),
            ("networks in the ensemble", f"{METRICS[metric].partition(' (')[0]} (95 %)"),
            [(str(size), _write(metric, values.get(str(size), Ensemble()))) for size in sizes],
        )
        for metric in METRICS
        for name, values in groups.items()
    }
    return Plot("ensembles", title, f"Line plots. {alt}.", note, draw, points)


def _write(metric: str, found: Ensemble) -> str:
    value = getattr(found, metric)
    return percent(value.mean, value.ci95) if metric == "accuracy" else number(value.mean, ".4f", value.ci95)


def plot_memorisation(found: Mapping[int, Mapping[str, GroupMetrics]]) -> Plot:
    """Similarity to the K checkpoints, and the share that is new and good, of groups by name, by K."""
    counts = list(found)
    names = list(dict.fromkeys(name for groups in found.values() for name in groups))
    curves = {
        (name, key): [
            GROUP_COLUMNS[key].read(groups[name], groups["original"]) if name in groups else NOTHING
            for groups in found.values()
        ]
        for name in names
        for key in PANELS
    }

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 2.6 if narrow else 3.5, columns=3)
        handles = {}
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
            for place, name in enumerate(names):
                shift = 0.06 * (place - (len(names) - 1) / 2)
                leading = {"markersize": 5.5, "linewidth": 1.8}
                looks = leading if name in LEADING else {"markersize": 4, "linewidth": 1, "alpha": 0.75}
                handles[name] = _draw_line(axes, name, curves[name, key], shift, **looks)
            axes.set_xticks(range(len(counts)), [str(count) for count in counts])
            axes.margins(x=0.08)
            axes.set_title(title, loc="left", fontsize=9, color=color("text"))
            axes.set_xlabel("Checkpoints K")
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_formatter("{x:g}")
        panels[1].yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        panels[2].set_ylim(-0.04, 1.04)
        panels[2].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    copied = [groups["generated"].novel_and_performant.copied for groups in found.values()]
    title = f"Copies among the generated networks: {percent(copied[0], digits=0)} with {counts[0]} checkpoints"
    title += f", {percent(copied[-1], digits=0)} with {counts[-1]}" if len(counts) > 1 else ""
    alt = "; ".join(
        f"K = {count}: "
        + ", ".join(f"{label(name)} {number(curves[name, 'iou_nearest'][i][0], '.3g')}" for name in names)
        for i, count in enumerate(counts)
    )
    note = "Every generator was trained on the first K checkpoints alone. Originals: each against the others; unseen: "
    note += "later checkpoints of the same run. The largest of K similarities grows with K for every network. Copy: "
    note += "nearer to a checkpoint than a third of what these are from their nearest other one. Bars: 95 % intervals "
    note += "over networks."
    return Plot("memorisation", title, f"Line plots against K. Largest IoU of mistakes: {alt}.", note, draw)


def _draw_line(axes: Axes, name: str, values: Sequence[Value], shift: float, **options: float) -> ErrorbarContainer:
    """Draw a group's values with their intervals; groups are shifted, so that their bars do not hide each other."""
    face, marker = style(name)
    centers = np.array([value for value, _ in values], dtype=float)
    ends = np.array([(value, value) if interval is None else interval for value, interval in values], dtype=float).T
    bars = np.clip([centers - ends[0], ends[1] - centers], 0, None)
    options |= {"color": face, "marker": marker, "elinewidth": 1, "capsize": 2}
    return axes.errorbar(np.arange(len(values)) + shift, centers, bars, **options)


def plot_loss_curves(logs: Mapping[str, str | Path]) -> Plot | None:
    """The training loss of every stage by its `train_log.jsonl`, as it is and smoothed; `None` without any step."""
    curves = {}
    for title, log in logs.items():
        lines = [json.loads(line) for line in Path(log).read_text(encoding="utf-8").splitlines() if line]
        if not lines:
            continue
        losses = np.array([line["loss"] for line in lines])
        ones = np.ones(max(1, len(losses) // 20))
        # Dividing by the number of values under the window keeps both ends unbiased.
        smooth = np.convolve(losses, ones, "same") / np.convolve(np.ones_like(losses), ones, "same")
        curves[title] = np.array([line["step"] for line in lines]), losses, smooth
    if not curves:
        return None

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 2.4 if narrow else 3.0, columns=len(curves))
        for axes, (title, (steps, losses, smooth)) in zip(panels, curves.items(), strict=True):
            axes.plot(steps, losses, color=color("sky"), alpha=0.45, linewidth=0.8)
            axes.plot(steps, smooth, color=color("blue"), linewidth=2, marker="o" if len(steps) == 1 else None)
            if np.nanmax(losses) > 10 * np.nanmin(losses):
                axes.set_yscale("log")
            axes.set_xlabel("Step")
            options = {"loc": "left", "fontsize": 9, "color": color("text"), "parse_math": False}
            axes.set_title(label(title).capitalize(), **options)
        panels[0].set_ylabel("Mean squared error")
        return figure

    ends = [f"{smooth[-1]:.3g} ({label(name).lower()})" for name, (_, _, smooth) in curves.items()]
    title = f"Training loss ends at {', '.join(ends)}"
    alt = "; ".join(
        f"{label(name)}: from {losses[0]:.3g} at step {steps[0]} to {smooth[-1]:.3g} at step {steps[-1]}"
        for name, (steps, losses, smooth) in curves.items()
    )
    note = "Mean squared error as logged, and smoothed over 5 % of the steps."
    return Plot("loss_curves", title, f"Line plots. {alt}.", note, draw)
