"""Looks of every figure of a report, and its way into a PNG and into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...evaluation.groups import find_group, label
from ...files import atomic_write
from .points import LegendEntry, Points, find_places, tag, tagged, take_legends

# On a light and on a dark page. The hues are Okabe and Ito's, distinguishable with every kind of colour blindness,
# darker or lighter where the page's background leaves too little contrast.
COLORS = {
    "text": ("#1f2328", "#e6e9ee"),
    "muted": ("#5b6570", "#a3adb9"),
    "grid": ("#e3e6ea", "#2e353e"),
    "surface": ("#ffffff", "#171b21"),
    "blue": ("#0072b2", "#56b4e9"),
    "vermillion": ("#d55e00", "#ff8542"),
    "grey": ("#7d858f", "#8f98a4"),
    "green": ("#00875f", "#2fc79b"),
    "purple": ("#b8558f", "#e391c0"),
    "orange": ("#b87700", "#f0b429"),
    "sky": ("#2f8fc4", "#8ecdf5"),
    "ink": ("#30363d", "#d3d9e0"),
}
VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}


@dataclass
class Plot:
    """A figure of a report: the stem of its file, and its message as a title.

    `alt` has its numbers in words, for those who do not see it; `note` says how to read it. `draw` draws it without
    the title; `True` for the width of a phone. `points` are what a page says of points, by the part and the group
    that `tag` gave to their artist.
    """

    name: str
    title: str
    alt: str
    note: str
    draw: Callable[[bool], Figure]
    points: Mapping[tuple[str, str], Points] = field(default_factory=dict)

    def save_png(self, folder: Path) -> Path:
        """Write `NAME.png`, in light colours and with the title."""
        figure = self.draw(False)
        options = {"color": color("text"), "fontsize": 11, "fontweight": "bold", "wrap": True, "parse_math": False}
        figure.suptitle(self.title, x=0.01, ha="left", **options)
        with atomic_write(folder / f"{self.name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        return folder / f"{self.name}.png"

    def svgs(self) -> dict[str, str]:
        """Draw it as SVG for a page that defines [`COLORS`] as CSS variables: `wide`, and `narrow` for phones."""
        return {width: drawn.svg for width, drawn in self.drawings().items()}

    def drawings(self) -> dict[str, Drawing]:
        """The same with what can be pointed at."""
        return {width: _drawing(self, width) for width in ("wide", "narrow")}


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG; with [`Points`], where they are, and its legend, which is for the page to draw.

    Groups are the elements `<g data-group="N">` of the SVG, N their place in the legend.
    """

    svg: str
    legend: Sequence[LegendEntry] = ()
    places: Mapping[tuple[str, str], list] = field(default_factory=dict)


def color(name: str) -> str:
    """The light variant of a colour of [`COLORS`], which `Plot.svgs` turns into the CSS variable."""
    return COLORS[name][0]


def style(group: str) -> tuple[str, str]:
    """Colour and marker of a group."""
    found = find_group(group)
    return color(found.color), found.marker


def handle(group: str) -> Line2D:
    """What a legend shows of a group."""
    face, marker = style(group)
    return Line2D([], [], color=face, marker=marker, markersize=7 if marker == "*" else 5.5, linestyle="")


def new_figure(narrow: bool, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, list]:
    """Make a figure and its panels, with rows of `height` inches; for a phone, a narrow one, all below each other.

    `options` are those of `Figure.subplots`.
    """
    if narrow:
        rows, columns = rows * columns, 1
    figure = Figure(figsize=(3.7 if narrow else 7.8, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(color("muted"))
        axes.tick_params(colors=color("muted"), which="both", labelcolor=color("text"), labelsize=8.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set(color=color("text"), fontsize=9)
        axes.grid(True, color=color("grid"), linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def legend(owner: Figure | Axes, handles: Mapping, names: Sequence[str] | None = None, **options) -> None:
    """Put a legend on a figure or beside its axes, of handles by group name; original and generated are bold."""
    options = {"frameon": False, "fontsize": 8.5, "handletextpad": 0.4, "columnspacing": 1.2, **options}
    names = names or [label(name) for name in handles]
    texts = owner.legend(list(handles.values()), names, labelcolor=color("text"), **options).get_texts()
    for name, text in zip(handles, texts, strict=True):
        text.set_parse_math(False)
        tag(text, name)
        text.set_fontweight("bold" if name in ("original", "generated") else "normal")


def _drawing(plot: Plot, width: str) -> Drawing:
    figure = plot.draw(width == "narrow")
    entries = take_legends(figure) if plot.points else []
    numbers = {entry.group: number for number, entry in enumerate(entries)}
    artists = tagged(figure)
    for artist, _, group in artists:
        # Names of groups come from outside, and are no ids.
        artist.set_gid(f"g{numbers[group]}" if group in numbers else None)
    svg = _svg(figure, f"{plot.name}-{width}")
    return Drawing(svg, entries, find_places(artists, plot.points))


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text; the salt keeps the ids of several figures in one page apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)[0]
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: css_color(match[0]), body)
    body = re.sub(r'<g id="g(\d+)"', r'<g data-group="\1"', body)
    return f'<svg {view_box} aria-hidden="true">' + re.sub(r'<g id="[^"]*"', "<g", body)


def css_color(hexadecimal: str) -> str:
    """The CSS variable of a light colour of [`COLORS`]; others stay as they are."""
    return VARIABLES.get(hexadecimal, hexadecimal)
