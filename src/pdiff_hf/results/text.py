"""Numbers as people read them, each with its interval, and the tables that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "–"


@dataclass
class ReportTable:
    """A table of text, whose first column names the rows.

    `intervals` are a value, its lower and its upper end for each row, to be drawn; few look at a `folded` one.
    """

    columns: Sequence[str]
    rows: list[Sequence[str]]
    title: str = ""
    intervals: list[tuple[float, float, float] | None] = field(default_factory=list)
    folded: bool = False
    meanings: Sequence[str] = ()


@dataclass
class Section:
    """A part of a report: paragraphs, or a list with `bullets`, then names of figures, then tables."""

    title: str
    text: Sequence[str] = ()
    plots: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    bullets: bool = False


def markdown_table(table: ReportTable) -> list[str]:
    """The lines of a table, its title first."""
    return [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|" + " --- |" + " ---: |" * (len(table.columns) - 1),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows),
    ]


def percent(value: float | None, interval: Sequence[float] | None = None, digits: int = 2, unit: str = " %") -> str:
    """A fraction in %: `95.70 % (94.00–97.40)`; the unit is left out where a header names it."""
    if value is None:
        return MISSING
    text = f"{100 * value:.{digits}f}{unit}"
    return text if interval is None else f"{text} ({100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f})"


def points(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A difference of fractions in percentage points: `+0.05 (−0.06 to +0.15)`."""
    if value is None:
        return MISSING
    text = signed(100 * value, ".2f")
    return text if interval is None else f"{text} ({points(interval[0])} to {points(interval[1])})"


def reconstruction(gate: Mapping[str, Any]) -> str:
    """What the gate has found of an autoencoder, the content of `reconstruction.json`, as sentences."""
    explained = percent(gate["explained_variance"])
    if gate.get("compares") != "functions":
        text = f"The autoencoder explains {explained} of the variance of held-out checkpoints"
        # Before they were measured, there was the whole alone.
        if gate.get("explained_by_kind"):
            text += f" ({by_kind(gate['explained_by_kind'])})"
    else:
        own, other = (percent(gate[key]) for key in ("agreement_own", "agreement_other"))
        text = (
            f"The autoencoder explains {explained} of what held-out networks compute differently; written by it, they "
            f"agree with their own original on {own} of the validation examples and with others on {other}"
        )
        if gate["disagreement_ratio"] is not None:
            text += f", and with each other they disagree {gate['disagreement_ratio']:.2f} times as often as originals"
        if "analogies_agreement" in gate:
            agreement = percent(gate["analogies_agreement"])
            text += f"; for tasks that no network was trained on, they agree with what was wanted on {agreement}"
    if "accuracy_drop" in gate:
        text += f"; reconstruction loses {100 * max(gate['accuracy_drop'], 0):.2f} points of accuracy"
    if "score_drop" in gate:
        text += (
            f"; reconstruction takes {gate['metric']['name']} from {gate['score_original']:.4g} to "
            f"{gate['score_reconstructed']:.4g}, the originals' standard deviation being {gate['score_std']:.2g}"
        )
    return f"{text}."


def by_kind(shares: Mapping[str, float]) -> str:
    """Shares of kinds of tensors: `weights 93.1 %, biases 99.0 %`."""
    return ", ".join(f"{kind} {percent(share, digits=1)}" for kind, share in shares.items())


def number(value: float | None, fmt: str, interval: Sequence[float] | None = None) -> str:
    """A number in `fmt`: `0.973 (0.970–0.976)`."""
    if value is None:
        return MISSING
    text = format(value, fmt)
    return text if interval is None else f"{text} ({interval[0]:{fmt}}–{interval[1]:{fmt}})"


def signed(value: float, fmt: str) -> str:
    """A number with its sign, a real minus."""
    return format(value, f"+{fmt}").replace("-", "−")


def quantity(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A number of any unit: `0.0123 (0.0119–0.0127)`, `−1.5 (−2 to 0.1)`."""
    if value is None:
        return MISSING
    value, *ends = (format(found, ".4g").replace("-", "−") for found in (value, *(interval or ())))
    return f"{value} ({(' to ' if '−' in ''.join(ends) else '–').join(ends)})" if ends else value


def signed_number(value: float, interval: Sequence[float] | None = None) -> str:
    """A difference of numbers of any unit: `−0.0123 (−0.02 to −0.004)`."""
    text = signed(value, ".3g")
    return text if interval is None else f"{text} ({signed(interval[0], '.3g')} to {signed(interval[1], '.3g')})"


def sign(interval: Sequence[float] | None) -> int:
    """1 or -1 when the 95 % interval of a difference excludes zero, else 0."""
    low, high = interval or (-1, 1)
    return 1 if low > 0 else -1 if high < 0 else 0
