"""Points of a figure that stand for something, where they are in its SVG, and the groups that a reader can hide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

# Units of an SVG in an inch.
UNITS = 72
# Of a line without markers.
DASH = "M-.7 -.08H.7V.08H-.7Z"
# SVG's commands, by those of matplotlib's paths.
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


@dataclass(frozen=True)
class Points:
    """What the points of one `scatter`, or one line, stand for.

    Args:
        title (`str`): What all of them are.
        fields (`Sequence[str]`): What is said of each; the first names it.
        rows (`Sequence[Sequence[str]]`): A text for every field, by point, in the order in which they are drawn.
    """

    title: str
    fields: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: the group that it names, its text, a colour, and a marker's outline as SVG path data."""

    group: str
    text: str
    color: str
    outline: str
    is_bold: bool


def tag(artists: Artist | Iterable[Artist], group: str, part: str = "") -> None:
    """Say that artists belong to a group, and which `part` of `Plot.points` an artist's points are."""
    for artist in [artists] if isinstance(artists, Artist) else artists:
        artist.set_gid(f"{part}:{group}")


def tagged(figure: Figure) -> list[tuple[Artist, str, str]]:
    """Artists that were given to [`tag`], each with its part and its group."""
    found = figure.findobj(lambda artist: ":" in (artist.get_gid() or ""))
    return [(artist, *artist.get_gid().split(":", 1)) for artist in found]


def find_places(
    artists: Iterable[tuple[Artist, str, str]], points: Mapping[tuple[str, str], Points]
) -> dict[tuple[str, str], list]:
    """Where points are in the SVG of a figure that was drawn: `[x, y]` each, `None` of those outside of their axes.

    `artists` are those that [`tagged`] has found.
    """
    found = {}
    for artist, part, group in artists:
        if (part, group) not in points:
            continue
        if isinstance(artist, Line2D):
            at = artist.get_transform().transform(artist.get_xydata())
        else:
            at = artist.get_offset_transform().transform(np.ma.filled(artist.get_offsets(), np.nan))
        if len(at) != len(points[part, group].rows) or (part, group) in found:
            raise ValueError(f"expected one artist for {part} of {group!r}, with a point for every row.")
        scale, height = UNITS / artist.figure.dpi, UNITS * artist.figure.get_figheight()
        # What is not clipped may be on the edge.
        box = artist.axes.bbox.padded(0 if artist.get_clip_on() else 4)
        found[part, group] = [
            [round(float(x) * scale, 1), round(height - float(y) * scale, 1)] if box.contains(x, y) else None
            for x, y in at
        ]
    return found


def take_legends(figure: Figure) -> list[LegendEntry]:
    """Remove the legends of a figure, whose handles are lines with markers, and return what they say."""
    boxes = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    entries = [
        LegendEntry(
            text.get_gid().partition(":")[2],
            text.get_text(),
            to_hex(handle.get_color()),
            DASH if handle.get_marker() in (None, "", "None") else outline(handle.get_marker()),
            text.get_fontweight() == "bold",
        )
        for box in boxes
        for handle, text in zip(box.legend_handles, box.get_texts(), strict=True)
    ]
    for box in boxes:
        box.remove()
    return entries


def outline(marker: str) -> str:
    """The filled outline of a marker as SVG path data, around 0 and about 1 wide."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    size = max(*path.get_extents().size, 1e-9)
    path = Path(path.vertices / size * (1, -1), path.codes)
    parts = []
    for values, code in path.iter_segments(curves=True, simplify=False):
        numbers = "" if code == Path.CLOSEPOLY else " ".join(f"{value:.3g}" for value in values)
        parts.append(COMMANDS[code] + numbers)
    return " ".join(parts)
