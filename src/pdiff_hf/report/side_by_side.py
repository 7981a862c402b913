"""Several runs in one table of the terminal: what each has generated, its originals, and two averages of these."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from ..results.columns import Column, at, in_format, in_percent, in_whole_percent
from ..results.metrics import Metrics
from ..results.population import Population

# Groups, and how they are called here.
SHOWN = {
    "original": "originals",
    "generated": "generated",
    "uniform_soup": "uniform soup",
    "pca_gaussian": "Gaussian of weights",
}

# fmt: off
COLUMNS = (
    Column("mean accuracy", "%", at("accuracy"), in_percent,
        "Mean test accuracy of the networks."),
    Column("IoU of mistakes", "", at("iou"), in_format(".2f"),
        "Shared mistakes of two networks: 1 for the same mistakes."),
    Column("disagreement", "%", at("disagreement"), in_percent,
        "Test examples on which two networks say different things; not measured of one run."),
    Column("ensemble", "%", at("ensemble"), in_percent,
        "Test accuracy of averaged probabilities."),
    Column("copies", "%", at("copies"), in_whole_percent,
        "Networks that are next to one that was seen."),
)
# fmt: on


def compare_runs(runs: Mapping[str, Metrics]) -> Table:
    """A table of the runs' groups, with the verdicts below, by the runs' names.

    The originals of a run that knows populations are those held out; those of another are all.
    """
    verdicts = [f"{name[0].upper()}{name[1:]}. {metrics.verdict}" for name, metrics in runs.items()]
    options = {"caption_justify": "left", "caption_style": "bold", "show_edge": False, "pad_edge": False}
    table = Table(caption="\n".join(verdicts), **options)
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.header, justify="right")
    for name, metrics in runs.items():
        groups = metrics.population or _without_populations(metrics)
        size = groups["generated"].ensemble_size
        table.add_row(f"{name}, ensembles of {size:g}" if size else name, style="bold")
        for group, label in SHOWN.items():
            held_out = ", held out" if group == "original" and metrics.population else ""
            table.add_row(f"  {label}{held_out}", *(column.cell(groups[group]) for column in COLUMNS))
        table.add_section()
    return table


def _without_populations(metrics: Metrics) -> dict[str, Population]:
    """What is known of the groups shown, where there are no held-out originals to compare them with."""
    found = {}
    for name in SHOWN:
        group = metrics.groups[name]
        sizes = metrics.ensembles.get(name, {})
        size = max(map(int, sizes), default=None)
        found[name] = Population(
            accuracy=group.test_accuracy.mean,
            iou=group.similarity.iou_mean if group.n > 1 else None,
            ensemble=sizes[str(size)].accuracy.mean if sizes else None,
            ensemble_size=size,
            copies=None if name == "original" else group.novel_and_performant.copied,
        )
    return found
