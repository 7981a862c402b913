"""The parts of a report, the same for every form in which it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class ReportTable:
    """A table of text.

    Args:
        columns (`Sequence[str]`): Headers; the first column names the row.
        rows (`list[Sequence[str]]`): Cells.
        title (`str`, *optional*): Its caption.
        intervals (`list[tuple | None]`, *optional*): A value, its lower and its upper end for each row, to be drawn.
        folded (`bool`): Whether few look at it.
    """

    columns: Sequence[str]
    rows: list[Sequence[str]]
    title: str = ""
    intervals: list[tuple[float, float, float] | None] = field(default_factory=list)
    folded: bool = False


@dataclass
class Section:
    """A part of a report.

    Args:
        title (`str`): Its heading.
        text (`Sequence[str]`): Paragraphs.
        plots (`Sequence[str]`): Names of its figures.
        tables (`Sequence[ReportTable]`): Its tables.
        bullets (`bool`): Whether the paragraphs are a list.
    """

    title: str
    text: Sequence[str] = ()
    plots: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    bullets: bool = False
