"""Sections of a report after its verdict, for every form in which it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..results.merges_table import merges_table, merges_text
from ..results.metrics import Metrics
from ..results.population_table import POPULATION_COLUMNS, TEST_COLUMNS, population_table
from ..results.records import SelectedDifference
from ..results.tables import (
    DISTRIBUTION_COLUMNS,
    ENSEMBLE_COLUMNS,
    HELD_OUT_COLUMNS,
    REGRESSION_COLUMNS,
    comparison_columns,
    group_table,
    make_table,
)
from ..results.text import MISSING, ReportTable, Section, number, percent, reconstruction
from .protocol import protocol
from .tasks import unseen_tasks

# What a loss on held-out rows means, by what these are to those seen.
HELD_OUT_KINDS = {
    "between": "rows between neighbours of one trajectory, which is interpolation; other runs where every row is one",
    "block": "a block in the middle of a run, with a gap on both sides",
    "end": "the last tenth of a run, which is drift: no generator of the past can know it, and nothing is asked",
    "run": "another run, the only one of these that is independent",
}


def examples_text(metrics: Metrics) -> str:
    """How many examples there are, or scores of each network."""
    if metrics.metric.is_accuracy:
        return f"{metrics.num_test:,} test examples"
    return "one score for each network" if metrics.num_test == 1 else f"{metrics.num_test:,} scores for each network"


def make_sections(metrics: Metrics, gate: Mapping | None, plots: Sequence[str]) -> list[Section]:
    """Make the sections of a report; what is not known by `metrics`, `reconstruction.json` or `plots` is left out."""
    sections = [
        *([_groups(metrics)] if metrics.tasks is None else unseen_tasks(metrics)),
        _population(metrics),
        *([_novelty(metrics)] if metrics.tasks is None else []),
        _distribution(metrics),
        _denoiser(metrics),
        _comparisons(metrics),
        _merges(metrics),
        _ensembles(metrics),
        _calibration(metrics),
        _cost(metrics),
        _training(gate),
        Section("How they come out of noise", plots=["trajectory", "trajectory_plane"]),
        _seeds(metrics),
        Section("How it was measured", protocol(metrics), bullets=True),
    ]
    for section in sections:
        section.plots = [name for name in section.plots if name in plots]
    return [section for section in sections if section.text or section.plots or section.tables]


def _groups(metrics: Metrics) -> Section:
    columns = ("difference", "accuracy", "selected", "std", "networks", "independent")
    metric = metrics.metric
    table = group_table(metrics, columns, f"Test {metric.title}", bars="difference")
    text = f"{metrics.num_parameters:,} generated parameters, {examples_text(metrics)}."
    if metric.is_accuracy:
        text += " The best network of a group is chosen on the val examples; everything is reported on the test "
        text += "examples."
    else:
        text += f" Networks are judged by their {metric.name}: {metric.direction}."
    texts = [text]
    original = metrics.original
    if original.n_effective is not None and original.n_effective < original.n:
        texts.append(
            f"Checkpoints of one run are alike: by the autocorrelation of their parameters, the {original.n:g} "
            f"originals count as {original.n_effective:.1f} independent ones in every interval over them."
        )
    chosen = {name: group.chosen for name, group in metrics.groups.items() if group.chosen}
    if chosen:
        told = (f"{name} " + ", ".join(f"{k} {v}" for k, v in values.items()) for name, values in chosen.items())
        texts.append(f"Merges of originals, with what was chosen for them on the val examples: {'; '.join(told)}.")
    return Section("Are they good?", texts, ["accuracy_similarity", "accuracy_histograms"], [table])


def _population(metrics: Metrics) -> Section:
    found = metrics.population
    if not found:
        return Section("")
    original = found["original"]
    inputs = "test examples" if original.num_inputs == metrics.num_test else "random test examples"
    text = [
        f"All groups beside the {original.n:g} originals that were held out (original), which are of other runs than "
        "those that the autoencoder and the denoiser saw (seen). Whatever is made of originals is made of those seen. "
        "In accuracy, diversity and ensembles nothing beats the networks seen, and what gives them back (seen "
        "redrawn) is as good: near, side and copies tell.",
        "A network is compared as a function: its logits without their mean over the classes, on "
        f"{original.num_inputs:,g} {inputs}; the distance of two is the root of the mean squared difference. "
        + " ".join(f"{_capital(column.name)}: {column.meaning}" for column in list(POPULATION_COLUMNS.values())[1:-1]),
    ]
    if original.shares:
        text.append(
            f"The zoo has {len(original.shares)} populations, {', '.join(original.shares)}, in this order in the last "
            "column. They are used to judge, never to train; pairs and ensembles are those within a population."
        )
    tables = [
        population_table(metrics),
        population_table(metrics, TEST_COLUMNS, "Tests in function space, against held-out originals"),
    ]
    return Section("Is it a population like the originals'?", text, ["population"], tables)


def _capital(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}"


def _novelty(metrics: Metrics) -> Section:
    yardstick = metrics.yardstick
    metric = metrics.metric
    text = []
    if metric.is_accuracy:
        text.append(
            "IoU of wrong predictions: 1 means the same mistakes. Within: between networks of a group. Nearest: the "
            "original that is most alike."
        )
    columns = ("iou_within", "iou_nearest", "l2_nearest", "yardsticks", "l2_matched", "cosine", "spread")
    tables = [group_table(metrics, columns, "Similarity", plain=("yardsticks",))]
    if yardstick is None:
        text.append("With one original there is no distance among originals to compare with.")
    else:
        text.append(
            f"The yardstick: an original is {yardstick:.4g} from the nearest independent one on average, one of "
            "another run or at least an autocorrelation time away. A network is novel at 2x when it is farther than "
            f"twice that from every original, and performant when its test {metric.name} is {metric.not_worse} the "
            "originals' mean. It is a copy when it is closer to an original than a third of what originals are from "
            "their nearest other one."
        )
        columns = ("performant", "novel_all", "joint_all", "copies")
        tables.append(group_table(metrics, columns, "Shares of the networks"))
    if any(group.spread is not None for group in metrics.groups.values()):
        text += [
            "Spread: distance from the originals' mean, in units of the originals' own; averages of 16 independent "
            "networks have 0.25."
        ]
    if any(group.similarity.l2_matched_mean is not None for group in metrics.groups.values()):
        text[-1] += " After matching: L2 with the hidden units permuted so that they fit best."
    return Section("Are they new?", text, ["iou_matrix", "latent_pca"], tables)


def _distribution(metrics: Metrics) -> Section:
    found = metrics.distribution
    if not found:
        return Section("")
    text = [
        "Draws against originals that the generator has not seen, in the space of its latents. The row original is "
        "what originals that it has seen reach in the place of draws: a generator of the right distribution is like "
        "it. Baselines are made of originals seen.",
        "The classifier is shown a draw and an original not seen, and says which is the draw, by the nearest of other "
        "draws and of originals seen, taken at random. It is right in half of the cases when it cannot tell, and in "
        "fewer when draws are nearer to originals seen than others are. Copies show best in the distance to the "
        "nearest original seen over that to the nearest not seen, equally many of both: it is far below 1.",
    ]
    size = found["original"].n_effective if "original" in found else None
    if size is not None and size < (metrics.original.n or 0):
        text.append(
            f"Neighbours of a trajectory are alike: the originals count like {size:.3g} independent ones. So this is "
            "said of the places that their runs visited, not of what other runs would visit."
        )
    rows = [(name, (values,)) for name, values in found.items()]
    columns = [column for column in DISTRIBUTION_COLUMNS if any(column.cell(*row) != MISSING for _, row in rows)]
    return Section(
        "Is it the distribution?", text, tables=[make_table("group", columns, rows, "Tests in latent space")]
    )


def _denoiser(metrics: Metrics) -> Section:
    denoiser = metrics.denoiser
    if denoiser is None or not denoiser.held_out:
        return Section("")
    text = [
        "What the denoiser makes of checkpoints that it has not seen, beside what needs no training: latents taken "
        "for white noise, and a Gaussian with their mean and covariance."
    ]
    if denoiser.kept_step is not None:
        closed_form = "this Gaussian" if denoiser.explained is None else denoiser.closed_form
        text[0] += f" Its weights are those of step {denoiser.kept_step:g}"
        text[0] += (
            "." if denoiser.kept_step else f", where it is {closed_form}: the rows that choose it find nothing better."
        )
    text += [f"{kind.capitalize()}: {HELD_OUT_KINDS[kind]}." for kind in denoiser.held_out if kind in HELD_OUT_KINDS]
    if beyond := [kind for kind, losses in denoiser.held_out.items() if losses.is_beyond_what_was_learned]:
        text.append(
            f"Of {' and '.join(beyond)} nothing that was learned holds: white noise is nearer the truth than the "
            "denoiser and its Gaussian, which are sure of directions that these rows do not keep to."
        )
    rows = [(kind, (values,)) for kind, values in denoiser.held_out.items()]
    is_told = any(losses.regression is not None for losses in denoiser.held_out.values())
    columns = HELD_OUT_COLUMNS + REGRESSION_COLUMNS * is_told
    table = make_table("held out", columns, rows, "Loss on checkpoints not seen")
    return Section("What the denoiser has learned", text, tables=[table])


def distribution_line(metrics: Metrics) -> str | None:
    """How well a classifier tells draws from held-out originals, in a sentence."""
    known = {
        name: metrics.distribution[name] for name in ("generated", "gaussian_latents") if name in metrics.distribution
    }
    if "generated" not in known:
        return None
    shares = [percent(values.two_sample_accuracy, digits=0) for values in known.values()]
    line = f"A classifier tells a generated from a held-out network in {shares[0]} of the cases (50 %: not at all"
    return line + (f"; Gaussian of the latents: {shares[1]})." if len(shares) > 1 else ").")


def _comparisons(metrics: Metrics) -> Section:
    if not metrics.comparisons:
        return Section("")
    selected = metrics.selected_comparisons
    rows = [(name, (mean, selected.get(name, SelectedDifference()))) for name, mean in metrics.comparisons.items()]
    all_columns = comparison_columns(metrics.metric)
    columns = [column for column in all_columns if any(column.cell(*row) != MISSING for _, row in rows)]
    text = [
        "The generated networks against every other group, on the same examples: the mean of single networks, so "
        "against an average of originals it is one network against an average."
    ]
    if any(best.p_value is not None for _, (_, best) in rows):
        text[0] += " The best on val are compared by McNemar's exact test on the examples that only one gets right."
    tables = [make_table("generated minus", columns, rows, "Differences", bars=all_columns[0])]
    if metrics.soup_comparisons:
        text.append(
            "Average against average: the soups of generated networks against the same soups of originals."
            + (" Ensembles are compared with ensembles below." if metrics.ensembles else "")
        )
        pairs = [(name, (difference, SelectedDifference())) for name, difference in metrics.soup_comparisons.items()]
        tables.append(make_table("soup of generated minus", all_columns[:1], pairs, "Average against average"))
    return Section("Generated against the others", text, tables=tables)


def _merges(metrics: Metrics) -> Section:
    if not metrics.merges:
        return Section("")
    text = [
        *merges_text(metrics),
        "Heads, and whatever else is no factor, are averaged alike for every merge. Errors of outputs are the largest "
        "on random inputs, in units of their standard deviation. Identity: one adapter that is merged alone has to "
        "give itself.",
    ]
    return Section("Which merge is best for these adapters?", text, tables=[merges_table(metrics)])


def _ensembles(metrics: Metrics) -> Section:
    rows = [(name, (found, size)) for name, sizes in metrics.ensembles.items() for size, found in sizes.items()]
    if not rows:
        return Section("")
    text = ["Averaging the probabilities of M networks, which costs M times the inference of one."]
    table = make_table("group", ENSEMBLE_COLUMNS, rows, "All ensembles", folded=True)
    return Section("Do they help each other? Ensembles", text, ["ensembles"], [table])


def _calibration(metrics: Metrics) -> Section:
    if not metrics.metric.is_accuracy or not metrics.groups:
        return Section("")
    text = ["Means over the networks. ECE: expected calibration error with 15 equal bins; lower is better."]
    return Section("Calibration", text, tables=[group_table(metrics, ("nll", "ece"), "Calibration")])


def _cost(metrics: Metrics) -> Section:
    tables, text = [], []
    table = group_table(metrics, ("seconds", "difference", "gain_per_second"), "Gain per second", known="seconds")
    if table.rows:
        text = [
            "What making the networks of a group takes once the checkpoints are there, and the gain in mean "
            f"{metrics.metric.name} over the originals that this buys. For the generated ones: autoencoder, diffusion "
            "and drawing."
        ]
        tables.append(table)
    if metrics.timings_s:
        peaks = {"peak memory (MB)": metrics.peak_rss_mb}
        if metrics.peak_device_mb:
            peaks["peak on the accelerator (MB)"] = metrics.peak_device_mb
        rows = [
            (stage, f"{seconds:.1f}", *(number(found.get(stage), ".0f") for found in peaks.values()))
            for stage, seconds in metrics.timings_s.items()
            if seconds is not None
        ]
        tables.append(ReportTable(("stage", "seconds", *peaks), rows, "Stages of the run", folded=True))
    return Section("What it costs", text, tables=tables)


def _seeds(metrics: Metrics) -> Section:
    if metrics.seeds is None or not metrics.groups:
        return Section("")
    rows = [
        (name, *(metrics.metric.write(value).removesuffix(" %") for value in group.score.per_seed or ()))
        for name, group in metrics.groups.items()
    ]
    columns = ("group", *(f"seed {seed}" for seed in metrics.seeds))
    unit = ", %" if metrics.metric.is_accuracy else ""
    return Section("Seed by seed", tables=[ReportTable(columns, rows, f"Mean test {metrics.metric.title}{unit}")])


def _training(gate: Mapping | None) -> Section:
    if not gate:
        return Section("Training", plots=["loss_curves"])
    return Section("Training", [reconstruction(gate)], ["loss_curves"])
