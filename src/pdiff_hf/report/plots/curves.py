"""Figures with a line for every group or stage: ensembles and losses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...evaluation.groups import label
from ...results.records import Ensemble, Mean
from ...results.text import percent
from .style import Plot, color, legend, new_figure, style

METRICS = {"accuracy": "Accuracy (higher is better)", "nll": "NLL (lower is better)", "ece": "ECE (lower is better)"}


def plot_ensembles(ensembles: Mapping[str, Mapping[str, Ensemble]]) -> Plot | None:
    """Accuracy, NLL and ECE of ensembles by their number of networks; `None` when there are none.

    Args:
        ensembles (`Mapping`): By group and number of networks, as in [`Metrics`].
    """
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
            for shift, (name, values) in enumerate(groups.items()):
                face, marker = style(name)
                found = {size: getattr(values[str(size)], metric) for size in sizes if str(size) in values}
                known = [size for size, value in found.items() if value.ci95]
                if not known:
                    continue
                means = np.array([scale * found[size].mean for size in known])
                lows, highs = np.array([found[size].ci95 for size in known]).T * scale
                # Side by side, so that their bars do not hide each other.
                x = [sizes.index(size) + 0.14 * (shift - (len(groups) - 1) / 2) for size in known]
                bars = np.clip([means - lows, highs - means], 0, None)
                handles[name] = axes.errorbar(
                    x, means, bars, color=face, marker=marker, markersize=5, linewidth=1.8, elinewidth=1, capsize=2
                )
            if single and getattr(single, metric).mean is not None:
                handles["best single network"] = axes.axhline(
                    scale * getattr(single, metric).mean, color=color("muted"), linewidth=1.2, linestyle=(0, (4, 3))
                )
            axes.set_title(title, loc="left", fontsize=9, color=color("text"))
            axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
            axes.margins(x=0.12)
            if metric == "accuracy":
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
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
        f"{label(name)} with {size}: accuracy {percent(value.accuracy.mean)}, NLL {_text(value.nll)}, "
        f"ECE {_text(value.ece)}"
        for name, values in ensembles.items()
        for size, value in values.items()
    )
    note = "Average of the probabilities of 1 to M networks, against the best single network on val. Bars: 95 % "
    note += "intervals over test examples and draws; the examples are the same for all, so differences are surer than "
    note += "the bars suggest."
    return Plot("ensembles", title, f"Line plots. {alt}.", note, draw)


def plot_loss_curves(logs: Mapping[str, str | Path]) -> Plot | None:
    """The training loss of every stage, as logged and smoothed over 5 % of its steps; `None` without any step.

    Args:
        logs (`Mapping[str, str | Path]`): `train_log.jsonl` with lines `{"step", "loss", …}`, by stage.
    """
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

    ends = {title: smooth[-1] for title, (_, _, smooth) in curves.items()}
    title = "Training loss ends at " + ", ".join(
        f"{value:.3g} ({label(name).lower()})" for name, value in ends.items()
    )
    alt = "; ".join(
        f"{label(name)}: from {losses[0]:.3g} at step {steps[0]} to {smooth[-1]:.3g} at step {steps[-1]}"
        for name, (steps, losses, smooth) in curves.items()
    )
    note = "Mean squared error as logged, and smoothed over 5 % of the steps."
    return Plot("loss_curves", title, f"Line plots. {alt}.", note, draw)


def _text(value: Mean) -> str:
    return "unknown" if value.mean is None else f"{value.mean:.4f}"
