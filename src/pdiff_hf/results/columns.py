"""Columns of tables of results: name, where the number is, how it is written, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .text import MISSING, number, percent, signed

# A number, or several of a cell by what they belong to, and the interval of the first.
Value = tuple[Any, Sequence[float] | None]
Write = Callable[[Any, Sequence[float] | None], str]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Its header is the name and the unit, which says whether the numbers have intervals. `read` gives the value and its
    interval, of what a row is about, and `write` makes text of both. `meaning` says what the number is.
    """

    name: str
    unit: str
    read: Callable[..., Value]
    write: Write
    meaning: str

    @property
    def header(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit[:1] not in ("", "(") else f"{self.name} {self.unit}".strip()

    @property
    def plain(self) -> Column:
        """The column without intervals, for tables that have little room."""
        unit = self.unit.replace("(95 %)", "").strip()
        return replace(self, unit=unit, read=lambda *row: (self.read(*row)[0], None))

    def cell(self, *row: Any) -> str:
        """The text of a cell."""
        value, interval = self.read(*row)
        return MISSING if value is None or value == {} else self.write(value, interval)

    def bar(self, *row: Any) -> tuple[float, float, float] | None:
        """A value and the ends of its interval, to be drawn."""
        value, interval = self.read(*row)
        return None if value is None or interval is None else (value, *interval)


def at(value: str, interval: str | None = None, scale: float = 1) -> Callable[..., Value]:
    """Read the first thing that a row is about, by paths of attributes and keys such as `similarity.iou_mean`."""

    def follow(found: Any, path: str) -> Any:
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else getattr(found, key)
        return found

    def read(found: Any, *_: Any) -> Value:
        number = follow(found, value)
        return number if number is None or scale == 1 else scale * number, interval and follow(found, interval)

    return read


def in_format(fmt: str) -> Write:
    """Write a number and its interval in a format such as `.3f`."""
    return lambda value, interval: number(value, fmt, interval)


in_percent: Write = partial(percent, unit="")
in_whole_percent: Write = partial(percent, digits=0, unit="")


def in_difference(value: float, interval: Sequence[float] | None) -> str:
    """Write a difference with its sign: `−0.486 (−0.519 to −0.453)`."""
    text = signed(value, ".3f")
    return text if interval is None else f"{text} ({signed(interval[0], '.3f')} to {signed(interval[1], '.3f')})"
