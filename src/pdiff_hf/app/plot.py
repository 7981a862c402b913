"""The plot of the page: points of networks, drawn as an SVG whose points can be clicked and reached by keyboard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import torch

from .lab import Drawn, Lab, similarity_to

WIDTH, HEIGHT = 520, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 52
# Networks at the same place are spread by so many pixels times the root of their number.
SPREAD = 2.2
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Grey points, at most.
MAX_SHOWN = 300
MARKS = {
    "soup": "M0,-8 L8,0 L0,8 L-8,0 Z",
    "oracle": "M0,-9 L2.6,-3 L9,-3 L4,1.4 L6,8 L0,4 L-6,8 L-4,1.4 L-9,-3 L-2.6,-3 Z",
}


@dataclass(frozen=True)
class PlotData:
    """What is in the plot: pairs of similarity and score.

    Args:
        generated, originals (`list[tuple[float, float]]`): Of networks, in their order.
        marks (`list[tuple[str, float, float]]`): With their names.
        x_title, y_title (`str`): Of the axes.
        is_share (`bool`): Whether scores are written in percent.
        own_tasks (`bool`, *optional*, defaults to `False`): Whether every original is judged by a task of its own.
        notes (`tuple[str, ...]`, *optional*): What should be known of the networks.
    """

    generated: list[tuple[float, float]]
    originals: list[tuple[float, float]]
    marks: list[tuple[str, float, float]]
    x_title: str
    y_title: str
    is_share: bool
    own_tasks: bool = False
    notes: tuple[str, ...] = ()

    def write_score(self, value: float) -> str:
        """A score with its unit."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"


def plot_data(lab: Lab, drawn: Drawn | None) -> PlotData:
    """The points of networks that were drawn, or before any were, of the originals alone."""
    originals = lab.originals()
    # Of networks whose condition says no task there is no accuracy, and the originals are shown in the same way.
    judged = drawn.judged if drawn is not None else None if originals is None else originals.judged
    grey: list[tuple[float, float]] = []
    if originals is not None:
        rows = torch.linspace(0, len(originals.vectors) - 1, min(MAX_SHOWN, len(originals.vectors))).round().long()
        similarity, own = originals.similarity, originals.judged if judged is not None else None
        if own is None and originals.judged is not None:
            similarity = similarity_to(originals.vectors, None, originals.vectors, None, exclude_self=True)
        grey = _pairs(similarity[rows], lab.scores(originals.vectors, own)[rows])
    return PlotData(
        [] if drawn is None else _pairs(drawn.similarity, lab.scores(drawn.vectors, drawn.judged)),
        grey,
        [] if drawn is None else [(mark.name, mark.similarity, mark.score) for mark in drawn.marks],
        lab.similarity_title(judged),
        lab.score_title(judged),
        judged is not None and lab.judge is not None and lab.judge.metric.is_accuracy,
        judged is not None and judged.labels is not None and lab.judge.has_own_tasks,
        () if drawn is None else tuple(drawn.notes),
    )


def _pairs(similarity: torch.Tensor, score: torch.Tensor) -> list[tuple[float, float]]:
    return list(zip(similarity.tolist(), score.tolist(), strict=True))


def spread(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places in pixels, of which those that are the same are moved apart along a spiral, so that each can be hit."""
    seen: Counter[tuple[float, float]] = Counter()
    found = []
    for place in places:
        radius, angle = SPREAD * math.sqrt(seen[place]), GOLDEN_ANGLE * seen[place]
        seen[place] += 1
        found.append((round(place[0] + radius * math.cos(angle), 1), round(place[1] + radius * math.sin(angle), 1)))
    return found


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two others, about `count` of them."""
    step = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, int(high / step + 1e-9) + 1)]


class _Axis:
    """From values to pixels."""

    def __init__(self, values: Iterable[float], start: float, stop: float):
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        margin = 0.06 * (high - low) or 0.02 * max(abs(high), 0.5)
        self.low, self.high, self._start, self._stop = low - margin, high + margin, start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self._start + share * (self._stop - self._start), 1)

    @property
    def ticks(self) -> list[float]:
        return nice_ticks(self.low, self.high)


def draw_svg(data: PlotData, selected: int | None = None) -> str:
    """The plot as SVG; every generated network is an option of a list, which a screen reader reads out."""
    points = [*data.generated, *data.originals, *((x, y) for _, x, y in data.marks)]
    if not points:
        return '<p class="pd-empty">Generate networks to see them here.</p>'
    x = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT)
    y = _Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="pd-plot" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(_summary(data))}">']
    for tick in x.ticks:
        parts.append(f'<line class="pd-grid" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        text = f"{100 * tick:.4g} %" if data.is_share else f"{tick:g}"
        parts.append(f'<line class="pd-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4}" text-anchor="end">{text}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(data.x_title)}</text>'
        f'<text x="6" y="18">{escape(data.y_title)}</text>'
    )
    for cx, cy in spread([(x(sx), y(sy)) for sx, sy in _finite(data.originals)]):
        parts.append(f'<circle class="pd-original" cx="{cx}" cy="{cy}" r="3.5"/>')
    parts.append('<g role="listbox" aria-label="Generated networks">')
    focused = selected or 0
    shown = [number for number, point in enumerate(data.generated) if all(map(math.isfinite, point))]
    places = spread([(x(data.generated[number][0]), y(data.generated[number][1])) for number in shown])
    for number, (cx, cy) in zip(shown, places, strict=True):
        sx, sy = data.generated[number]
        name = f"network {number}: {data.y_title} {data.write_score(sy)}, similarity {sx:.3f}"
        parts.append(
            f'<circle class="pd-network" role="option" aria-selected="{str(number == selected).lower()}" '
            f'tabindex="{0 if number == focused else -1}" data-network="{number}" cx="{cx}" cy="{cy}" r="5" '
            f'aria-label="{escape(name)}"><title>{escape(name)}</title></circle>'
        )
    parts.append("</g>")
    for name, sx, sy in data.marks:
        if math.isfinite(sx) and math.isfinite(sy):
            kind = name.split()[0].rstrip(":")
            parts.append(
                f'<path class="pd-mark pd-{kind}" d="{MARKS[kind]}" transform="translate({x(sx)},{y(sy)})">'
                f"<title>{escape(name)}: {data.write_score(sy)}</title></path>"
            )
    return "".join(parts) + "</svg>" + _legend(data)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


def _summary(data: PlotData) -> str:
    """The plot in words."""
    return (
        f"{data.y_title} against {data.x_title}: {len(data.generated)} generated networks, {len(data.originals)} "
        "originals"
    )


def _legend(data: PlotData) -> str:
    entries = []
    if data.generated:
        mean = sum(score for _, score in data.generated) / len(data.generated)
        entries.append(
            f'<span class="pd-key pd-network"></span>{len(data.generated)} generated, mean {data.write_score(mean)}'
        )
    if data.originals:
        mean = sum(score for _, score in data.originals) / len(data.originals)
        which = f"{len(data.originals)} originals{', each at its own task' if data.own_tasks else ''}"
        entries.append(f'<span class="pd-key pd-original"></span>{which}, mean {data.write_score(mean)}')
    for name, _, score in data.marks:
        kind = name.split()[0].rstrip(":")
        path = f'<path class="pd-mark pd-{kind}" d="{MARKS[kind]}"/>'
        shape = f'<svg class="pd-keymark" viewBox="-10 -10 20 20" aria-hidden="true">{path}</svg>'
        entries.append(f"{shape}{escape(name)}, {data.write_score(score)}")
    legend = '<p class="pd-legend">' + "".join(f"<span>{entry}</span>" for entry in entries) + "</p>"
    return legend + "".join(f'<p class="pd-note" role="status">{escape(note)}</p>' for note in data.notes)
