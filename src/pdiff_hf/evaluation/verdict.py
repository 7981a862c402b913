"""One plain sentence about what an evaluation found."""

from __future__ import annotations

from itertools import groupby

RELATIONS = {-1: "worse than", 0: "not distinguishable from", 1: "better than"}
REFERENCES = {
    "original": "the originals",
    "average_16": "averages of 16 originals",
    "uniform_soup": "the uniform soup of all originals",
}


def make_verdict(metrics: dict) -> str:
    """Compare the generated networks with the originals and with averages of them.

    A difference counts when its 95 % interval excludes zero.

    Args:
        metrics (`dict`): `groups` and `comparisons` as in `metrics.json`.
    """
    if "generated" not in metrics["groups"]:
        return "No generated networks were evaluated."
    found = []
    for reference, description in REFERENCES.items():
        if reference in metrics["comparisons"]:
            comparison = metrics["comparisons"][reference]
            low, high = comparison["ci95"]
            found.append((1 if low > 0 else -1 if high < 0 else 0, f"{description} ({_points(comparison)})"))
    clauses = [
        f"{RELATIONS[sign]} {' and '.join(text for _, text in references)}"
        for sign, references in groupby(found, key=lambda item: item[0])
    ]
    sentence = "Generated networks are on average " + ", but ".join(clauses)
    scores = metrics["groups"]["generated"]["novel_and_performant"]
    if scores["novel"]["1x"] < 0.5:
        return (
            f"{sentence}; only {scores['novel']['1x']:.0%} of them are farther from every original than originals are "
            "from each other."
        )
    return f"{sentence}; {scores['joint']['1x']:.0%} of them are both novel and performant."


def _points(comparison: dict) -> str:
    low, high = comparison["ci95"]
    return f"{100 * comparison['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
