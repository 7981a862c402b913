"""Figures of groups of networks: accuracy against similarity, and accuracies one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...evaluation.groups import find_group, is_shown, label
from ...evaluation.summary import GroupEvaluation
from ...results.metric import Metric
from ...results.metrics import Metrics
from ...results.text import percent
from ...results.text import points as points_of
from .points import Points, tag
from .style import Plot, color, handle, legend, new_figure, style

ACCURACY = {
    -1: "less accurate than the originals",
    0: "not distinguishable from the originals in accuracy",
    1: "more accurate than the originals",
}


# Networks of a group that are drawn one by one; of more, so many.
MAX_POINTS = 2000


def plot_accuracy_similarity(
    metrics: Metrics,
    groups: Mapping[str, GroupEvaluation] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Plot | None:
    """Test accuracy against the IoU of wrong predictions with the nearest original; `None` without similarities.

    Large markers are group means; their bars are 95 % intervals of the difference to the originals' mean (dashed
    line), so a bar that stays clear of the line is a real difference. With `groups`, every network is a small point.
    `names` are what the networks of a group are called.
    """
    means = {
        name: (group.similarity.iou_max_mean, 100 * group.test_accuracy.mean)
        for name, group in metrics.groups.items()
        if None not in (group.similarity.iou_max_mean, group.test_accuracy.mean)
    }
    reference = metrics.original.test_accuracy.mean
    if not means or reference is None:
        return None
    reference *= 100
    clouds, points = {}, {("mean", name): _of_mean(name, metrics) for name in means}
    for name in means:
        if name in (groups or ()) and is_shown(name, "points"):
            kept, *clouds[name] = _networks(groups[name])
            points["networks", name] = describe_networks(name, groups[name], metrics.metric, names or {}, kept)
    differences = {name: metrics.groups[name].difference_to_original.ci95 for name in means if name != "original"}
    intervals = {name: [reference + 100 * end for end in ends] for name, ends in differences.items() if ends}
    in_view = [name for name in means if find_group(name).role != "baseline"]
    centers = [means[name] for name in in_view]
    left, right = _view([mean[0] for mean in means.values()], _core(centers, clouds, 0), 0.02)
    inside = [name for name, (x, _) in means.items() if left <= x <= right]
    heights = [y for name in inside for y in (means[name][1], *intervals.get(name, ()))]
    core = [reference, *_core(centers, clouds, 1), *(y for name in in_view for y in intervals.get(name, ()))]
    low, high = _view(heights, core, 0.5)
    example = 100 / metrics.num_test

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = new_figure(narrow, 4.9 if narrow else 4.4)
        for name, (x, y) in clouds.items():
            face, marker = style(name)
            # Accuracies are whole numbers of examples: without this, networks would hide each other.
            y = y + example * np.random.default_rng(0).uniform(-0.4, 0.4, len(y))
            cloud = axes.scatter(x, y, s=10, color=face, marker=marker, alpha=0.3, linewidths=0)
            tag(cloud, name, "networks")
        axes.axhline(reference, color=color("blue"), linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axes.set(xlim=(left, right), ylim=(low, high))
        for name, mean in means.items():
            _draw_mean(axes, name, mean, intervals.get(name), narrow)
        iou = "IoU" if narrow else "IoU of wrong predictions with the nearest original"
        axes.set_xlabel(f"← new mistakes · {iou} · same mistakes →")
        axes.set_ylabel("Test accuracy")
        axes.yaxis.set_major_formatter("{x:g} %")
        ranked = sorted(means, key=lambda name: -means[name][1])
        handles = {name: handle(name) for name in ranked}
        texts = [f"{label(name)} {means[name][1]:.2f} %" for name in ranked]
        if narrow:
            # Names with their numbers are long, and two columns have to fit a phone.
            small = {"fontsize": 7, "columnspacing": 0.6, "handletextpad": 0.2, "borderpad": 0, "handlelength": 1.2}
            legend(figure, handles, texts, loc="outside lower center", ncols=2, **small)
        else:
            legend(axes, handles, texts, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
        return figure

    note = "Large: group means, with the 95 % interval of the difference to the originals' mean (dashed line)."
    if clouds:
        note += f" Small: single networks ({', '.join(map(label, clouds))}), scattered by less than an example."
        drawn = [f"{MAX_POINTS:,} of {label(name)}" for name in clouds if len(groups[name].test_score) > MAX_POINTS]
        note += f" Drawn are {', '.join(drawn)}." if drawn else ""
    outside = [label(name) for name, (x, y) in means.items() if not (left <= x <= right and low <= y <= high)]
    note += f" Beyond the edge: {', '.join(outside)}." if outside else ""
    alt = "; ".join(f"{label(name)}: {y:.2f} % accuracy, IoU {x:.3f}" for name, (x, y) in means.items())
    return Plot("accuracy_similarity", _title(metrics), f"Scatter plot. {alt}.", note, draw, points)


def _draw_mean(
    axes: Axes, name: str, mean: tuple[float, float], interval: Sequence[float] | None, narrow: bool
) -> None:
    """Mark a group's mean with its interval, at the edge when it lies beyond."""
    (left, right), (low, high), (x, y) = axes.get_xlim(), axes.get_ylim(), mean
    face, marker = style(name)
    if interval is not None and left <= x <= right and low <= y <= high:
        bars = np.clip([[y - interval[0]], [interval[1] - y]], 0, None)
        bar = axes.errorbar(x, y, bars, color=face, linewidth=1.5, capsize=3, zorder=3)
        tag(bar.get_children(), name)
    size = (130 if marker == "*" else 100 if name == "generated" else 60) * (0.7 if narrow else 1)
    place = min(max(x, left), right), min(max(y, low), high)
    options = {"edgecolors": color("surface"), "linewidths": 1, "zorder": 4 + (name == "generated")}
    tag(axes.scatter(*place, s=size, color=face, marker=marker, clip_on=False, **options), name, "mean")


def plot_accuracy_histograms(metrics: Metrics, groups: Mapping[str, GroupEvaluation]) -> Plot | None:
    """Test accuracies, or other scores, of the networks of a few groups; `None` when there are none."""
    metric = metrics.metric
    scores = {name: groups[name].test_score.double().numpy() for name in groups if is_shown(name, "histogram")}
    scores = {name: values[np.isfinite(values)] for name, values in scores.items()}
    scores = {name: values for name, values in scores.items() if len(values)}
    if "original" not in scores:
        return None
    edges = _accuracy_edges(scores, metrics.num_test) if metric.is_accuracy else _score_edges(scores)
    reference = scores["original"].mean()
    beyond = {name: int(((values < edges[0]) | (values > edges[-1])).sum()) for name, values in scores.items()}
    means = {name: metric.write(values.mean().item()) for name, values in scores.items()}

    def draw(narrow: bool) -> Figure:
        height = (1.05 * len(scores) + 0.4) / len(scores)
        figure, panels = new_figure(narrow, height, rows=len(scores), sharex=True)
        scale = metric.scale
        for axes, (name, values) in zip(panels, scores.items(), strict=True):
            face, _ = style(name)
            shares = np.full(len(values), 100 / len(values))
            axes.hist(scale * values, scale * edges, weights=shares, color=face, alpha=0.85)
            axes.axvline(scale * reference, color=color("text"), linewidth=1.2, linestyle=(0, (3, 2)))
            if name != "original" and edges[0] <= values.mean() <= edges[-1]:
                axes.axvline(scale * values.mean(), color=color("text"), linewidth=1.8)
            axes.set_title(f"{label(name)}: mean {means[name]}", loc="left", fontsize=9, color=color("text"))
            axes.yaxis.set_major_formatter("{x:.0f} %")
            axes.locator_params(axis="y", nbins=2)
            axes.grid(False, axis="x")
        panels[-1].set_xlabel(f"Test {metric.title} of a network")
        panels[-1].xaxis.set_major_formatter("{x:g} %" if metric.is_accuracy else "{x:g}")
        panels[-1].locator_params(axis="x", nbins=5 if narrow else 9)
        return figure

    title = f"The originals' mean is {means['original']}"
    if "generated" in scores:
        share = percent(metrics.generated.novel_and_performant.performant, digits=0)
        title = f"{share} of the generated networks reach the originals' mean of {means['original']}"
    ends = {name: [metric.write(end.item()) for end in (v.min(), v.max())] for name, v in scores.items()}
    alt = "; ".join(
        f"{label(name)}: {low.removesuffix(' %')} to {high}, mean {means[name]}" for name, (low, high) in ends.items()
    )
    note = f"Share of the networks of a group by test {metric.title}. Solid: their mean; dashed: the originals'."
    if outside := [f"{num} of {label(name)}" for name, num in beyond.items() if num]:
        note += f" Beyond the edge: {', '.join(outside)}."
    return Plot("accuracy_histograms", title, f"Histograms. {alt}.", note, draw)


def _accuracy_edges(accuracies: Mapping[str, np.ndarray], num_examples: int) -> np.ndarray:
    """Edges of bars that hold whole numbers of examples and are centred on them."""
    example = 1 / num_examples
    lowest, highest = (f([f(values) for values in accuracies.values()]) for f in (np.min, np.max))
    width = example * max(1, math.ceil((highest - lowest) / example / 40))
    return lowest - example / 2 + width * np.arange(math.ceil((highest - lowest + example) / width) + 1)


def _score_edges(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Edges of 40 bars around the originals and the generated networks: a hopeless group is beyond them."""
    core = np.concatenate([scores[name] for name in ("original", "generated") if name in scores])
    low, high = np.percentile(core, [2, 98])
    margin = (high - low) or abs(high) or 1.0
    everything = np.concatenate(list(scores.values()))
    low, high = max(everything.min(), low - margin), min(everything.max(), high + margin)
    return np.linspace(low, high if high > low else low + margin, 41)


def _title(metrics: Metrics) -> str:
    if "generated" not in metrics.groups:
        return f"The originals reach {percent(metrics.original.test_accuracy.mean)}"
    comparison = metrics.generated.difference_to_original
    title = f"Generated networks are {ACCURACY[comparison.sign]}"
    ours, theirs = (group.similarity.iou_max_mean for group in (metrics.generated, metrics.original))
    if ours is None or theirs is None:
        return f"{title}: {points_of(comparison.difference)} points"
    return f"{title}; IoU of mistakes {ours:.2f}, among originals {theirs:.2f}"


def _networks(group: GroupEvaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Networks that are drawn, as their places in the group, their similarities and accuracies in %."""
    x, y = group.iou_max.numpy(), 100 * group.test_score.numpy()
    kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), MAX_POINTS)).round().astype(int)]
    return kept, x[kept], y[kept]


def describe_networks(
    name: str,
    group: GroupEvaluation | None,
    metric: Metric,
    names: Mapping[str, Sequence[str]],
    kept: Sequence[int] | np.ndarray,
) -> Points:
    """What is said of some networks of a group: `kept` are their places in it; `names` as of all plots of networks."""

    def call(of: str, number: int) -> str:
        return names[of][number] if number < len(names.get(of, ())) else f"number {number}"

    columns = {"network": [call(name, number) for number in kept]}
    if group is not None:
        columns[f"test {metric.title}"] = [metric.write(group.test_score[number].item()) for number in kept]
    if group is not None and group.iou_nearest is not None:
        columns["nearest original"] = [call("original", group.iou_nearest[number].item()) for number in kept]
        columns["IoU of mistakes with it"] = [f"{group.iou_max[number]:.3f}" for number in kept]
    return Points(label(name), [*columns], list(zip(*columns.values(), strict=True)))


def _of_mean(name: str, metrics: Metrics) -> Points:
    group = metrics.groups[name]
    columns = {
        "mean of": f"{group.n:,} networks" if (group.n or 0) > 1 else "one network",
        "test accuracy": percent(group.test_accuracy.mean),
    }
    if name != "original" and group.difference_to_original.difference is not None:
        difference = group.difference_to_original
        columns["against the originals, points"] = points_of(difference.difference, difference.ci95)
    columns["IoU with the nearest original"] = f"{group.similarity.iou_max_mean:.3f}"
    return Points(label(name), [*columns], [tuple(columns.values())])


def _core(centers: Sequence[tuple[float, float]], clouds: Mapping, axis: int) -> list[float]:
    """What has to be in view along an axis."""
    clouds = [cloud[axis] for cloud in clouds.values() if len(cloud[axis])]
    percentiles = [value for cloud in clouds for value in np.percentile(cloud, [3, 97])]
    return [*percentiles, *(center[axis] for center in centers)]


def _view(values: Sequence[float], core: Sequence[float], least: float) -> tuple[float, float]:
    """Limits that hold the core, and what is not far from it: a hopeless group must not squeeze all others."""
    span = max(max(core) - min(core), least)
    low, high = max(min([*values, *core]), min(core) - span), min(max([*values, *core]), max(core) + span)
    margin = 0.07 * max(high - low, least)
    return low - margin, high + margin
