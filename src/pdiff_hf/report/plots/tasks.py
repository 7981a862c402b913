"""Figures of networks for unseen tasks: every way's accuracy, and every task's."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...results.metrics import Metrics
from ...results.tasks_table import ordered_groups
from ...results.text import percent
from .style import Plot, color, legend, new_figure

COLORS = {"generator": "vermillion", "reference": "blue", "ceiling": "grey", "weights": "orange", "latents": "green"}
LABELS = {
    "generator": "drawn",
    "reference": "trained, or guessed",
    "ceiling": "needs labels",
    "weights": "of weights",
    "latents": "of latents",
}
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
            axes.scatter(oracle[own], generated[own], s=34, color=face, marker=marker, alpha=0.85, zorder=3)
            handles[f"{size} class{'es' if size > 1 else ''}"] = Line2D(
                [], [], color=face, marker=marker, linestyle=""
            )
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
    return Plot("task_by_task", title, alt, note, draw)
