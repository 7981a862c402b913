"""Figures of networks for unseen tasks: every way's accuracy, and every task's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...results.metrics import Metrics
from ...results.tasks_table import ordered_groups
from ...results.text import percent
from .points import Points, tag
from .style import Plot, color, legend, new_figure

COLORS = {"generator": "vermillion", "reference": "blue", "ceiling": "grey", "weights": "orange", "latents": "green"}
LABELS = {
    "generator": "drawn",
    "reference": "trained, or guessed",
    "ceiling": "needs labels",
    "weights": "of weights",
    "latents": "of latents",
}
# From few classes to many; what lies between two of them is seen on a light and on a dark page, too.
SIZES = ("blue", "purple", "vermillion", "orange")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def plot_unseen_tasks(metrics: Metrics) -> Plot | None:
    """Accuracy of every way with its interval, the best at the top."""
    if metrics.tasks is None:
        return None
    groups = {name: group for name, group in ordered_groups(metrics).items() if group.accuracy is not None}
    ranked = sorted(groups.items(), key=lambda item: item[1].accuracy)

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = new_figure(narrow, 0.24 * len(ranked) + 1.1)
        for name, value in (("oracle", "blue"), ("majority", "grey")):
            if name in groups:
                line = {"color": color(value), "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 2}
                axes.axvline(100 * groups[name].accuracy, **line)
        for place, (name, group) in enumerate(ranked):
            face, mean = color(COLORS.get(group.role or "", "grey")), 100 * group.accuracy
            if group.ci95 is not None:
                axes.plot([100 * end for end in group.ci95], [place, place], color=face, linewidth=2, zorder=3)
            axes.scatter(mean, place, s=70 if name == "generated" else 32, color=face, zorder=4)
        axes.set_yticks(range(len(ranked)), [name.replace("_", " ") for name, _ in ranked])
        for (name, _), text in zip(ranked, axes.get_yticklabels(), strict=True):
            text.set_fontweight("bold" if name == "generated" else "normal")
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_xlabel("Test accuracy on unseen tasks")
        roles = dict.fromkeys(group.role for _, group in reversed(ranked) if group.role in COLORS)
        handles = {LABELS[role]: Line2D([], [], color=color(COLORS[role]), marker="o", linestyle="") for role in roles}
        legend(figure, handles, list(handles), loc="outside lower center", ncols=2 if narrow else 5)
        return figure

    alt = "; ".join(f"{name.replace('_', ' ')} {percent(group.accuracy)}" for name, group in reversed(ranked))
    generated, oracle = (groups[name] for name in ("generated", "oracle"))
    title = (
        f"For tasks that nobody trained: generated networks {percent(generated.accuracy, digits=1)}, trained ones "
        f"{percent(oracle.accuracy, digits=1)}"
    )
    note = "Lines are 95 % intervals over tasks; dashed: networks trained on the tasks, and the more frequent answer."
    return Plot("unseen_tasks", title, f"Mean accuracies on unseen tasks: {alt}.", note, draw)


def plot_task_by_task(metrics: Metrics) -> Plot | None:
    """For every unseen task, generated networks against those trained on it, by the number of its classes."""
    if metrics.tasks is None:
        return None
    tasks = metrics.tasks
    generated, oracle = (torch.tensor(tasks.unseen[name].accuracies) * 100 for name in ("generated", "oracle"))
    sizes = torch.tensor(tasks.sizes)
    low = min(generated.min(), oracle.min()).item()
    high = max(generated.max(), oracle.max()).item()
    margin = 0.04 * (high - low) + 0.1

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = new_figure(narrow, 3.7)
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=color("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        handles = {}
        palette = ("blue", "vermillion", "green", "purple", "orange", "sky", "grey", "ink")
        for number, size in enumerate(sizes.unique().tolist()):
            own = sizes == size
            face, marker = color(palette[number % len(palette)]), MARKERS[number % len(MARKERS)]
            cloud = axes.scatter(oracle[own], generated[own], s=34, color=face, marker=marker, alpha=0.85, zorder=3)
            tag(cloud, _classes(size), "tasks")
            handles[_classes(size)] = Line2D([], [], color=face, marker=marker, linestyle="")
        axes.set(xlim=ends, ylim=ends, xlabel="Networks trained on the task", ylabel="Generated networks")
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.yaxis.set_major_formatter("{x:g} %")
        legend(figure, handles, list(handles), loc="outside lower center", ncols=3 if narrow else 5)
        return figure

    above = (generated > oracle).double().mean().item()
    title = f"On {percent(above, digits=0)} of the unseen tasks generated networks are better than trained ones"
    alt = (
        f"Scatter plot of {len(sizes)} tasks. Generated {generated.min():.1f} to {generated.max():.1f} %, trained "
        f"{oracle.min():.1f} to {oracle.max():.1f} %."
    )
    note = "One mark is one task: means of its networks on test examples. Above the line generated ones are better."
    fields = ("task", "generated, mean test accuracy", "trained on the task")
    points = {
        ("tasks", _classes(size)): Points(
            _classes(size),
            fields,
            [
                (
                    tasks.names[task] if task < len(tasks.names) else f"number {task}",
                    f"{generated[task]:.2f} %",
                    f"{oracle[task]:.2f} %",
                )
                for task in (sizes == size).nonzero()[:, 0].tolist()
            ],
        )
        for size in sizes.unique().tolist()
    }
    return Plot("task_by_task", title, alt, note, draw, points)


def _classes(size: int) -> str:
    return f"{size} class{'es' if size > 1 else ''}"


def plot_condition_map(
    latents: Mapping[str, torch.Tensor],
    sizes: Mapping[str, torch.Tensor],
    names: Mapping[str, Sequence[tuple[str, str]]],
) -> Plot | None:
    """Latents `(n, C * L)` of networks seen, trained on unseen tasks and generated for these, by their task's size.

    `sizes` `(n,)` are the classes of every network's subset, `names` what it and its task are called. The plane is
    that of the first two principal components of the networks seen; `None` for fewer than 3 of them, or latents of one
    value.
    """
    seen = latents["seen"].double()
    if len(seen) < 3 or seen.shape[1] < 2:
        return None
    center = seen.mean(0)
    _, singular, components = torch.linalg.svd(seen - center, full_matrices=False)
    explained = (singular.square() / singular.square().sum().clamp_min(1e-30)).tolist()
    planes = {name: ((values.double() - center) @ components[:2].T).numpy() for name, values in latents.items()}
    kinds = sorted({size for own in sizes.values() for size in own.tolist()})
    texts = {"seen": "seen", "oracle": "trained on unseen tasks", "generated": "generated for unseen tasks"}
    looks = {"seen": ("o", 9, 0.5), "oracle": ("s", 34, 0.9), "generated": ("X", 42, 0.95)}

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 3.6 if narrow else 4.2, columns=2, sharex=True, sharey=True)
        colors = LinearSegmentedColormap.from_list("sizes", list(map(color, SIZES))).resampled(len(kinds))
        for axes, name in zip(panels, ("oracle", "generated"), strict=True):
            for group in ("seen", name):
                marker, size, alpha = looks[group]
                edge = {"edgecolors": "white", "linewidths": 0.5} if group != "seen" else {"linewidths": 0}
                for kind in sizes[group].unique().tolist():
                    hue, own = colors(kinds.index(kind)), (sizes[group] == kind).numpy()
                    cloud = axes.scatter(*planes[group][own].T, s=size, color=hue, marker=marker, alpha=alpha, **edge)
                    tag(cloud, _classes(kind), f"{group} in {name}")
            axes.set_title(texts[name].capitalize(), loc="left", fontsize=9, color=color("text"))
            axes.set_xlabel(f"Component 1: {explained[0]:.0%} of the variance")
        panels[0].set_ylabel(f"Component 2: {explained[1]:.0%}")
        handles = {
            _classes(kind): Line2D([], [], color=colors(place), marker="o", linestyle="", markersize=5)
            for place, kind in enumerate(kinds)
        }
        legend(figure, handles, list(handles), loc="outside lower center", ncols=3 if narrow else 5)
        return figure

    far = {name: (values.double() - center).square().sum(1).mean().sqrt() for name, values in latents.items()}
    ratio = (far["generated"] / far["oracle"].clamp_min(1e-30)).item()
    title = f"Networks for unseen tasks spread {ratio:.2f} times as far as those trained on them"
    alt = f"Two scatter plots of the first two principal components ({explained[0]:.0%} and {explained[1]:.0%} of the "
    alt += "variance of the networks seen), coloured by the number of classes of the task: networks trained on unseen "
    alt += f"tasks, and generated for them, among {len(seen)} seen."
    note = "Small dots: networks seen. Colour: classes of the subset that a network tells from all others; a subset "
    note += "and its complement lie on opposite sides."
    points = {
        (f"{group} in {panel}", _classes(kind)): Points(
            f"{texts[group]}, {_classes(kind)}",
            ("network", "task"),
            [name for name, size in zip(names[group], sizes[group].tolist(), strict=True) if size == kind],
        )
        for panel in ("oracle", "generated")
        for group in ("seen", panel)
        for kind in sizes[group].unique().tolist()
    }
    return Plot("condition_map", title, alt, note, draw, points)
