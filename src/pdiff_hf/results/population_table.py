"""The table of populations, and what is said of it where there is no room for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .columns import Column, Value, at, in_format, in_percent, in_whole_percent
from .metrics import Metrics
from .population import Population
from .tables import make_table
from .text import MISSING, ReportTable, percent, points

# What a group is called beside held-out originals, in a table.
FINDINGS = {
    "copying": "copies",
    "collapsed": "one function",
    "worse": "worse",
    "less_diverse": "less diverse",
    "more_diverse": "more diverse",
    "equal_population": "equal",
}


def _shares(values: Mapping[str, float], _: Sequence[float] | None) -> str:
    return " / ".join(in_whole_percent(share, None) for share in values.values())


def _finding(found: str, _: Sequence[float] | None) -> str:
    return FINDINGS.get(found, found)


def _count(found: float, _: Sequence[float] | None) -> str:
    return f"{found:g}"


# fmt: off
POPULATION_COLUMNS: dict[str, Column] = {
    "finding": Column("it is", "", at("finding"), _finding,
        "What the group is beside held-out originals, by the columns that follow."),
    "accuracy": Column("mean accuracy", "%", at("accuracy"), in_percent,
        "Mean test accuracy of the networks; of several populations, in the one that a network fits best."),
    "difference": Column("minus originals", "points (95 %)",
        at("accuracy_difference.difference", "accuracy_difference.ci95"), points,
        "The same minus that of the held-out originals."),
    "accuracy_min": Column("worst", "%", at("accuracy_min"), in_percent,
        "Test accuracy of the worst network."),
    "disagreement": Column("disagreement", "% (95 %)", at("disagreement", "ci95.disagreement"), in_percent,
        "Test examples on which two networks say different things."),
    "disagreement_ratio": Column("of the originals'", "(95 %)",
        at("disagreement_ratio", "ci95.disagreement_ratio"), in_format(".2f"),
        "Disagreement over that of held-out originals: 1 for as much diversity."),
    "iou": Column("IoU", "(95 %)", at("iou", "ci95.iou"), in_format(".3f"),
        "Shared mistakes of two networks, as IoU: 1 for the same mistakes."),
    "ensemble": Column("ensemble", "%", at("ensemble"), in_percent,
        "Test accuracy of averaged probabilities, of as many networks of every group."),
    "near": Column("near", "(95 %)", at("near", "ci95.near"), in_format(".2f"),
        "Distance of functions to the nearest network seen over that of held-out originals: 0 for copies."),
    "side": Column("side", "(95 %)", at("side", "ci95.side"), in_format(".2f"),
        "Distance to the nearest network seen over that to the nearest not seen, equally many of both: 0 for copies."),
    "copies": Column("copies", "% (95 %)", at("copies", "ci95.copies"), in_whole_percent,
        "Networks nearer to one seen than half of the smallest such distance of a held-out original."),
    "fit_share": Column("fit", "% (95 %)", at("fit_share", "ci95.fit_share"), in_whole_percent,
        "Networks no more than a point below the worst held-out original of the population that they fit best."),
    "shares": Column("by population", "%", at("shares"), _shares,
        "These by population."),
}
# Whether the functions are drawn from the distribution of the originals'.
TEST_COLUMNS: tuple[Column, ...] = (
    Column("two-sample accuracy", "%", at("two_sample_accuracy"), in_whole_percent,
        "How often a classifier knows which of a network and a held-out original is which: 50 when it cannot tell."),
    Column("p", "", at("two_sample_p"), in_format(".3f"),
        "Of this accuracy among random exchanges of the two."),
    Column("p (MMD)", "", at("mmd_p"), in_format(".3f"),
        "Of the maximum mean discrepancy among random exchanges of the two."),
    Column("says the same", "%", at("agreement"), in_percent,
        "Test examples on which a network says what the nearest network seen says."),
    Column("networks", "", at("n"), _count,
        "Networks in the group."),
)
# fmt: on


def population_table(
    metrics: Metrics, columns: Sequence[Column] = tuple(POPULATION_COLUMNS.values()), title: str = "Populations"
) -> ReportTable:
    """A row for every group that is a population; columns of which nothing is known are left out."""
    rows = [(name, (found,)) for name, found in metrics.population.items()]
    columns = [column for column in columns if any(column.cell(*row) != MISSING for _, row in rows)]
    return make_table("group", columns, rows, title)


def population_column(group: str, key: str) -> Column:
    """A column of [`POPULATION_COLUMNS`] for rows about something that has a `population` of groups, such as a run."""
    column = POPULATION_COLUMNS[key]

    def read(row: Mapping[str, Any]) -> Value:
        return column.read(Population.model_validate(row.get("population", {}).get(group, {})))

    return replace(column, read=read)


def population_lines(metrics: Metrics) -> list[str]:
    """What is known of the generated networks as a population, beside held-out originals and the networks seen."""
    lines = []
    for name, text in (("original", "held-out originals"), ("seen", "the networks seen"), ("generated", "generated")):
        found = metrics.population.get(name)
        if found is None or found.accuracy is None:
            continue
        parts = [f"accuracy {percent(found.accuracy)}"]
        values = (
            ("disagreement of two", percent(found.disagreement)),
            (f"ensemble of {found.ensemble_size or 0:g}", percent(found.ensemble)),
            ("near", MISSING if found.near is None else f"{found.near:.2f}"),
            ("side", MISSING if found.side is None else f"{found.side:.2f}"),
            ("copies", percent(found.copies, digits=0)),
        )
        parts += [f"{what} {value}" for what, value in values if value != MISSING]
        lines.append(f"{text[0].upper()}{text[1:]}: {', '.join(parts)}")
    return lines
