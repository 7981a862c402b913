"""The figure of one axis of an ablation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...evaluation.groups import label
from ...results.text import percent
from .style import Plot, color, legend, new_figure, style

# Points of accuracy below the lowest originals from which on generated networks are only named.
OUT_OF_VIEW = 10
# Name → shift, and the keys of the value and the interval in an entry of the generated networks.
SERIES = {
    "generated": (-0.12, "test_accuracy", "mean", "ci95"),
    "best generated": (0.12, "selected", "test_accuracy", "test_ci95"),
}
STAGES = ("autoencoder", "diffusion", "generate")


def plot_ablation(axis: str, results: Mapping) -> Plot:
    """Accuracies along an axis of `ablation.json`; below them explained variance, peak memory and seconds."""
    entries, base = results["axes"][axis], results["base"][axis]
    values = [entry["value"] for entry in entries]
    points = [results["points"][entry["point"]] for entry in entries]
    found = {place: point for place, point in enumerate(points) if point["num_runs"]}
    panels = {
        "Variance\nexplained, %": [100 * point["explained_variance"] for point in found.values()],
        "Peak memory,\nMB": [max(point["peak_rss_mb"].values()) for point in found.values()],
        "Seconds": [sum(point["seconds"][stage] for stage in STAGES) for point in found.values()],
    }

    def draw(narrow: bool) -> Figure:
        figure, (axes, *others) = new_figure(
            narrow, 1.75, rows=1 + len(panels), sharex=True, height_ratios=[3.2, *[1] * len(panels)]
        )
        handles = _draw_accuracies(axes, found)
        for place in set(range(len(values))) - set(found):
            _say(axes, place, points[place]["status"], "muted")
        for panel, (title, numbers) in zip(others, panels.items(), strict=True):
            _draw_numbers(panel, title, list(found), numbers)
        names = [f"{_short(value)}\n(recipe)" if value == base else _short(value) for value in values]
        others[-1].set_xticks(range(len(values)), names, parse_math=False)
        others[-1].set_xlim(-0.6, len(values) - 0.4)
        others[-1].set_xlabel(label(axis))
        if handles:
            legend(figure, handles, loc="outside lower center", ncols=2 if narrow else 4)
        return figure

    alt = "; ".join(
        f"{values[place]}: generated {percent(_mean(point))}, best "
        f"{percent(point['groups']['generated']['selected']['test_accuracy'])}, originals "
        f"{percent(_mean(point, 'original'))}"
        for place, point in found.items()
    )
    note = "Filled: mean of the generated networks; open: the best on val; both on test examples, with 95 % "
    note += "intervals. The examples are the same for all, so differences are surer than the bars suggest. Lines: "
    note += "mean and uniform soup of the point's own originals."
    name = f"axis_{re.sub(r'[^A-Za-z0-9]+', '_', axis)}"
    return Plot(name, _title(axis, values, found), f"Dots with bars. {alt}.", note, draw)


def _title(axis: str, values: Sequence[str], found: Mapping[int, Mapping]) -> str:
    texts = {values[place]: percent(_mean(point)) for place, point in found.items()}
    if len(texts) <= 3:
        return f"{label(axis)}: generated networks reach {', '.join(f'{v} at {k}' for k, v in texts.items())}"
    ordered = sorted(found, key=lambda place: _mean(found[place]))
    low, high = values[ordered[0]], values[ordered[-1]]
    return f"{label(axis)}: generated networks reach from {texts[low]} at {low} to {texts[high]} at {high}"


def _mean(point: Mapping, group: str = "generated") -> float:
    return point["groups"][group]["test_accuracy"]["mean"]


def _draw_accuracies(axes: Axes, found: Mapping[int, Mapping]) -> dict[str, Artist]:
    """Draw the points of [`SERIES`] and the originals' lines; returns what the legend names."""
    handles: dict[str, Artist] = {}
    # One hopeless point must not squeeze all others.
    floor = min((100 * _mean(point, "original") for point in found.values()), default=0) - OUT_OF_VIEW
    for name, (shift, key, center, interval) in SERIES.items():
        for place, point in found.items():
            entry = point["groups"]["generated"][key]
            mean, ends = 100 * entry[center], entry[interval]
            if mean < floor:
                if name == "generated":
                    _say(axes, place, f"▾ {mean:.1f} %", "vermillion")
                continue
            # An interval over seeds does not exist for one of them.
            bars = [[mean - 100 * ends[0]], [100 * ends[1] - mean]] if ends else None
            face = color("vermillion" if name == "generated" else "surface")
            options = {"color": color("vermillion"), "marker": "D", "markersize": 6, "markerfacecolor": face}
            options |= {"linestyle": "", "elinewidth": 1.5, "capsize": 3}
            handles[name] = axes.errorbar(place + shift, mean, bars, **options)
    for name in ("original", "uniform_soup"):
        face, _ = style(name)
        for place, point in found.items():
            options = {"color": face, "linewidth": 1.6, "linestyle": "-" if name == "original" else ":"}
            handles[name] = axes.hlines(100 * _mean(point, name), place - 0.36, place + 0.36, **options)
    axes.set_ylabel("Test accuracy")
    axes.yaxis.set_major_formatter("{x:g} %")
    return handles


def _draw_numbers(panel: Axes, title: str, places: Sequence[int], numbers: Sequence[float]) -> None:
    # Autoencoders worse than the mean explain less than nothing; their number says it.
    panel.bar(places, np.clip(numbers, 0, None), width=0.5, color=color("sky"))
    for place, value in zip(places, numbers, strict=True):
        options = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": color("text")}
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        panel.text(place, max(value, 0), text.replace("-", "−"), **options)
    panel.set_ylabel(title, fontsize=8)
    panel.margins(y=0.3)
    panel.grid(False, axis="x")
    panel.locator_params(axis="y", nbins=3)


def _say(axes: Axes, place: int, text: str, name: str) -> None:
    options = {"ha": "center", "va": "bottom", "fontsize": 8.5, "color": color(name)}
    axes.text(place, 0.02, text, transform=axes.get_xaxis_transform(), **options)


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:16]}…"
