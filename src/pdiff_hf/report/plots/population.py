"""Figure of populations: how good, how diverse and how new they are, a point for every group."""

from __future__ import annotations

from matplotlib.figure import Figure

from ...evaluation.groups import label
from ...results.metrics import Metrics
from ...results.text import number, percent
from .points import Points, tag
from .style import Plot, color, handle, legend, new_figure, style

# Reach of the axes, in units of what held-out originals have, and the least span of accuracies in points.
REACH, LEAST_SPAN = 1.6, 3.0
# How many times the originals' own spread of accuracies is in view below their mean.
DEPTH = 4


def plot_population(metrics: Metrics) -> Plot | None:
    """Mean accuracy against diversity, and against the distance to the networks seen; `None` without populations."""
    found = {
        name: population
        for name, population in metrics.population.items()
        if None not in (population.accuracy, population.near) and (population.n or 0) > 1
    }
    original = found.get("original")
    if original is None or not original.disagreement:
        return None
    reference = 100 * original.accuracy
    span = max(LEAST_SPAN, DEPTH * 100 * (original.accuracy - (original.accuracy_min or 0)))
    highest = max(100 * population.accuracy for population in found.values())
    low, high = reference - span, max(highest, reference) + 0.15 * span
    places = {
        name: (population.disagreement / original.disagreement, population.near, 100 * population.accuracy)
        for name, population in found.items()
    }

    def draw(narrow: bool) -> Figure:
        figure, panels = new_figure(narrow, 2.9 if narrow else 3.6, columns=2, sharey=True)
        handles = {}
        titles = ("Diversity: disagreement over the originals'", "New: distance to the nearest seen")
        for axes, axis, title in zip(panels, (0, 1), titles, strict=True):
            axes.axhline(reference, color=color("blue"), linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            axes.axvline(1, color=color("blue"), linewidth=1, linestyle=(0, (4, 3)), zorder=2)
            for name, place in places.items():
                face, marker = style(name)
                x, y = min(max(place[axis], 0), REACH), min(max(place[2], low), high)
                size = 90 if name in ("generated", "original") else 50
                # Letters would drown in an edge.
                edge = {} if marker.startswith("$") else {"edgecolors": color("surface"), "linewidths": 0.8}
                place_of = {"zorder": 4 + (name == "generated"), "clip_on": False}
                mark = axes.scatter(x, y, s=size, color=face, marker=marker, **edge, **place_of)
                tag(mark, name, ("diversity", "near")[axis])
                handles[name] = handle(name)
            axes.set(xlim=(-0.03, REACH), ylim=(low, high))
            axes.set_xlabel(title)
        panels[0].set_ylabel("Mean test accuracy")
        panels[0].yaxis.set_major_formatter("{x:g} %")
        legend(figure, handles, loc="outside lower center", ncols=2 if narrow else 5)
        return figure

    alt = "; ".join(
        f"{label(name)}: {percent(population.accuracy)} accuracy, {number(places[name][0], '.2f')} of the originals' "
        f"disagreement, near {number(population.near, '.2f')}, {percent(population.copies, digits=0)} copies"
        for name, population in found.items()
    )
    note = "Held-out originals are where the dashed lines cross; what copies is at the left of the right panel."
    outside = [
        label(name) for name, (x, near, y) in places.items() if max(x, near) > REACH or not low <= y <= high
    ]  # fmt: skip
    note += f" Beyond the edge: {', '.join(outside)}." if outside else ""
    fields = ("networks", "mean test accuracy", "disagreement over the originals'", "distance to the nearest seen")
    points = {
        (part, name): Points(
            label(name),
            (*fields, "copies"),
            [
                (
                    f"{population.n:,}",
                    percent(population.accuracy),
                    number(places[name][0], ".2f"),
                    number(population.near, ".2f"),
                    percent(population.copies, digits=0),
                )
            ],
        )
        for name, population in found.items()
        for part in ("diversity", "near")
    }
    return Plot("population", _title(metrics), f"Scatter plots. {alt}.", note, draw, points)


def _title(metrics: Metrics) -> str:
    generated = metrics.population.get("generated")
    if generated is None or generated.disagreement_ratio is None:
        return "Held-out originals, and what is made of those seen"
    return (
        f"Generated networks have {generated.disagreement_ratio:.2f} times the originals' diversity, and "
        f"{percent(generated.copies, digits=0)} of them are copies"
    )
