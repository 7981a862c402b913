"""Figures of a page: their SVGs, and what its script reads and shows of their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .plots.points import LegendEntry
from .plots.style import Plot, css_color


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Args:
        plot ([`Plot`]): Its texts.
        svgs (`dict[str, Markup]`): Drawn `wide` and `narrow`.
        legend (`Sequence[LegendEntry]`): Of a figure whose points can be pointed at; others draw their own.
        data (`dict`, *optional*): What the script reads: for every `series` its group, title, fields and rows; for
            every width the `places` of the points of every series, `[x, y]` or nothing.
        can_hide (`Sequence[bool]`): Whether the figure has marks of an entry of the legend that can be hidden.
    """

    plot: Plot
    svgs: dict[str, Markup]
    legend: Sequence[LegendEntry]
    data: dict[str, Any] | None
    can_hide: Sequence[bool]


def make_chart(plot: Plot) -> Chart:
    """Draw a figure for a page."""
    drawings = plot.drawings()
    # Matplotlib's, which escapes all text.
    svgs = {width: Markup(drawn.svg) for width, drawn in drawings.items()}
    if not plot.points:
        return Chart(plot, svgs, (), None, ())
    legend = drawings["wide"].legend
    groups = {entry.group: number for number, entry in enumerate(legend)}
    series = [key for key in plot.points if key in drawings["wide"].places]
    data = {
        "series": [
            {
                "group": groups[group],
                "title": plot.points[part, group].title,
                "fields": plot.points[part, group].fields,
                "rows": plot.points[part, group].rows,
            }
            for part, group in series
        ],
        "places": {width: [drawn.places[key] for key in series] for width, drawn in drawings.items()},
    }
    can_hide = [f'data-group="{number}"' in svgs["wide"] for number in range(len(legend))]
    return Chart(plot, svgs, legend, data, can_hide)


def fill_of(entry: LegendEntry) -> str:
    """The CSS colour of an entry of a legend."""
    return css_color(entry.color)
