"""Figures of the way of generation: accuracy and distance along it, and the paths among the originals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from ...results.text import percent
from .style import Plot, color, legend, new_figure

# Name of a path in the data → colour, and what people call it.
PATHS = {"noisy": ("grey", "noisy latents"), "predicted": ("vermillion", "predicted clean latents")}
ORIGINALS, MEAN, END = "originals", "their mean", "generated networks"


def plot_trajectory(trajectory: Mapping) -> Plot:
    """Accuracy and distance to the nearest original of decoded networks along what [`trajectory`] has found."""
    times = [(timestep + 1) / trajectory["num_train_timesteps"] for timestep in trajectory["timesteps"][:-1]] + [0.0]
    values = {(name, key): _array(trajectory[name][key]) for name in PATHS for key in ("accuracy", "distance")}
    originals, mean = trajectory["originals"], trajectory["mean_of_originals"]

    def draw(narrow: bool) -> Figure:
        figure, (accuracy, distance) = new_figure(narrow, 2.7 if narrow else 3.4, columns=2)
        handles = {}
        for name, (hue, title) in PATHS.items():
            for axes, key, scale in ((accuracy, "accuracy", 100), (distance, "distance", 1)):
                paths = scale * values[name, key]
                axes.plot(times, paths, color=color(hue), linewidth=0.8, alpha=0.4)
                (handles[title],) = axes.plot(times, _mean(paths, 1), color=color(hue), linewidth=2.2)
        low, middle, high = (100 * originals["accuracy"][key] for key in ("min", "mean", "max"))
        accuracy.axhspan(low, high, color=color("blue"), alpha=0.15, linewidth=0)
        handles[ORIGINALS] = accuracy.axhline(middle, color=color("blue"), linewidth=1.2, linestyle=(0, (4, 3)))
        distance.axhline(1, color=color("blue"), linewidth=1.2, linestyle=(0, (4, 3)))
        if mean["distance"] is not None:
            options = {"color": color("green"), "linewidth": 1.2, "linestyle": (0, (1, 2))}
            handles[MEAN] = distance.axhline(mean["distance"], **options)
            accuracy.axhline(100 * mean["accuracy"], **options)
        accuracy.yaxis.set_major_formatter("{x:g} %")
        distance.set_yscale("log")
        # The numbers of a log axis that spans less than a decade are minor ones.
        distance.yaxis.set_major_formatter("{x:g}")
        distance.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        for axes, title in ((accuracy, "Test accuracy"), (distance, "Distance to the nearest original, yardsticks")):
            axes.set_title(title, loc="left", fontsize=9, color=color("text"))
            axes.set_xlabel("Time t / T (1: nothing but noise)")
            axes.set_xlim(1.03, -0.03)
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    ends = {key: _mean(values["noisy", key][-1]) for key in ("accuracy", "distance")}
    starts = {(name, key): _mean(value[0]) for (name, key), value in values.items()}
    title = f"Decoded noise reaches {percent(_known(starts['noisy', 'accuracy']))}, the generated networks "
    # Those of version 0.1 say nothing of it.
    compared = trajectory.get("compared_with", ORIGINALS)
    title += f"{percent(_known(ends['accuracy']))}, {compared} {percent(originals['accuracy']['mean'])}"
    alt = f"Line plots over {trajectory['num_inference_steps']} steps, means of {trajectory['num_starts']} starts. "
    alt += "; ".join(
        f"{text}: accuracy from {percent(_known(starts[name, 'accuracy']))} to {percent(_known(ends['accuracy']))}, "
        f"distance from {starts[name, 'distance']:.3g} to {ends['distance']:.3g} yardsticks"
        for name, (_, text) in PATHS.items()
    )
    note = f"{trajectory['num_starts']} starts (thin) and their mean, {trajectory['num_inference_steps']} steps of "
    note += f"{trajectory['scheduler']}. At every step the latents are decoded as they are, noise included, and as "
    note += "the clean latents that the denoiser predicts from them; both end in the generated network. Yardstick: an "
    note += f"original's mean distance to its nearest other original. Band: the range of {compared}."
    return Plot("trajectory", title, f"{alt}.", note, draw)


def plot_trajectory_plane(trajectory: Mapping) -> Plot:
    """The paths in the plane of the first two principal components of the originals' parameters."""
    originals, mean = (_array(trajectory[name]["plane"]) for name in ("originals", "mean_of_originals"))
    paths = {name: _array(trajectory[name]["plane"]) for name in PATHS}
    explained = trajectory["originals"]["explained_variance"]

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 3.4 if narrow else 4.0, columns=2, sharex=True, sharey=True)
        handles = {}
        for axes, (name, path) in zip(panels, paths.items(), strict=True):
            hue, title = PATHS[name]
            looks = {"color": color("blue"), "marker": "o", "alpha": 0.35, "linewidths": 0}
            handles[ORIGINALS] = axes.scatter(*originals.T, s=14, **looks)
            for start in range(path.shape[1]):
                options = {"color": color(hue), "linewidth": 1.2, "alpha": 0.85, "marker": ".", "markersize": 4}
                axes.plot(*path[:, start].T, **options)
                axes.plot(*path[0, start], color=color(hue), marker="o", markersize=6, markerfacecolor="none")
            ends = path[-1].T
            handles[END] = axes.scatter(*ends, s=34, color=color("ink"), marker="D", linewidths=0, zorder=3)
            handles[MEAN] = axes.scatter(*mean, s=90, color=color("green"), marker="*", linewidths=0, zorder=4)
            axes.set_title(title.capitalize(), loc="left", fontsize=9, color=color("text"))
            axes.set_xlabel(f"Component 1: {explained[0]:.0%} of the originals' variance")
        panels[0].set_ylabel(f"Component 2: {explained[1]:.0%}")
        handles["start"] = Line2D([], [], color=color("muted"), marker="o", linestyle="", markerfacecolor="none")
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else len(handles))
        return figure

    reach = {name: _array(trajectory[name]["distance_to_mean"]) for name in PATHS}
    end = _mean(reach["noisy"][-1])
    title = f"Where the paths lead: the generated networks lie {end:.2f} times as far from the originals' mean as "
    title += "originals do"
    ways = [f"{text} from {_mean(reach[name][0]):.2f} to {end:.2f}" for name, (_, text) in PATHS.items()]
    alt = "Paths in the plane of two principal components. Distance from the originals' mean, in units of the "
    alt += f"originals' own: {'; '.join(ways)}"
    note = f"First two principal components of the originals' parameters ({sum(explained):.0%} of their variance). "
    note += f"{trajectory['num_starts']} starts; a dot is a step. The distances count all "
    note += f"{trajectory['num_parameters']:,} parameters, the plane shows two directions of them."
    return Plot("trajectory_plane", title, f"{alt}.", note, draw)


def _array(values: list) -> np.ndarray:
    """What is unknown becomes NaN."""
    return np.array(values, dtype=float)


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    # Without a warning where nothing is known.
    known = np.isfinite(values)
    counts = known.sum(axis)
    return np.where(counts > 0, np.where(known, values, 0).sum(axis) / np.maximum(counts, 1), np.nan)


def _known(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None
