"""Tables of results, made of columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from .columns import GROUP_COLUMNS, Column
from .metrics import Metrics
from .text import MISSING, ReportTable


def make_table(
    first: str,
    columns: Sequence[Column],
    rows: Iterable[tuple[str, tuple]],
    title: str = "",
    *,
    bars: Column | None = None,
    folded: bool = False,
) -> ReportTable:
    """Make a table.

    Args:
        first (`str`): Header of the column that names the rows.
        columns (`Sequence[Column]`): The others.
        rows (`Iterable[tuple[str, tuple]]`): Name of a row, and what its columns read.
        title (`str`, *optional*): Its caption.
        bars (`Column`, *optional*): The column whose intervals are drawn where the table is.
        folded (`bool`, *optional*, defaults to `False`): Whether few look at it.
    """
    rows = list(rows)
    return ReportTable(
        (first, *(column.header for column in columns)),
        [(name, *(column.cell(*row) for column in columns)) for name, row in rows],
        title,
        [] if bars is None else [bars.bar(*row) for _, row in rows],
        folded,
        ("", *(column.meaning for column in columns)),
    )


def group_table(
    metrics: Metrics,
    names: Sequence[str],
    title: str = "",
    *,
    plain: Sequence[str] = (),
    bars: str | None = None,
    known: str | None = None,
    all_columns: bool = False,
) -> ReportTable:
    """Make a table with a row for every group; columns of which nothing is known are left out.

    Args:
        metrics ([`Metrics`]): What is known of them.
        names (`Sequence[str]`): Keys of [`GROUP_COLUMNS`].
        title (`str`, *optional*): Its caption.
        plain (`Sequence[str]`, *optional*): Keys of columns that are shown without their intervals.
        bars (`str`, *optional*): Key of the column whose intervals are drawn where the table is.
        known (`str`, *optional*): Key of a column that a group needs a value for to be in the table.
        all_columns (`bool`, *optional*, defaults to `False`): Keep columns of which nothing is known.
    """
    rows = [(name, (group, metrics.original)) for name, group in metrics.groups.items()]
    if known is not None:
        rows = [(name, row) for name, row in rows if GROUP_COLUMNS[known].cell(*row) != MISSING]
    columns = [GROUP_COLUMNS[name].plain if name in plain else GROUP_COLUMNS[name] for name in names]
    if not all_columns:
        columns = [column for column in columns if any(column.cell(*row) != MISSING for _, row in rows)]
    return make_table("group", columns, rows, title, bars=bars and GROUP_COLUMNS[bars])


def fold_header(header: str, width: int) -> str:
    """A header in lines of `width`, the unit in a line of its own; words are kept whole."""
    parts = header.rpartition(", ")
    lines = [f"{parts[0]},", parts[2]] if parts[0] else [header]
    # A number and its unit stay together.
    tied = (part.replace("95 %", "95\u00a0%") for part in lines)
    folded = (line for part in tied for line in wrap(part, width, break_long_words=False))
    return "\n".join(folded).replace("\u00a0", " ")
