"""Tables of results: their columns, also those of other metrics than accuracy, and the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from .columns import Column, Value, at, in_difference, in_format, in_percent, in_whole_percent
from .metric import Metric
from .metrics import Metrics
from .records import GroupMetrics
from .text import MISSING, ReportTable, points, quantity, signed, signed_number


def _shares(values: Mapping[str, float | None], interval: Sequence[float] | None) -> str:
    """Shares at several multiples, of which the first has the interval."""
    first, *others = values.values()
    return " / ".join([in_whole_percent(first, interval), *map(in_whole_percent, others)])


def _seconds(value: float, _: Any) -> str:
    return "< 0.01" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _count(value: float, _: Any) -> str:
    return f"{value:.1f}" if value < 100 and value % 1 else f"{value:.0f}"


def _rate(value: float, _: Any) -> str:
    # Two digits, and no exponent for large numbers.
    return signed(float(f"{value:.2g}"), "g")


def _difference(group: GroupMetrics, original: GroupMetrics) -> Value:
    """Nothing for the originals, whose difference to themselves is none."""
    difference = group.difference_to_original
    return (None, None) if group.role == "original" else (difference.difference, difference.ci95)


def _in_yardsticks(group: GroupMetrics, original: GroupMetrics) -> Value:
    nearest, yardstick = group.similarity.l2_nearest_mean, original.similarity.yardstick
    interval = group.similarity.ci95.l2_nearest_mean
    if nearest is None or not yardstick:
        return None, None
    return nearest / yardstick, interval and [end / yardstick for end in interval]


def _cosine_distance(group: GroupMetrics, original: GroupMetrics) -> Value:
    cosine = group.similarity.cosine_nearest_mean
    return None if cosine is None else max(0.0, 1 - cosine), None


_score = at("score.mean", "score.ci95")
_selected = at("selected.score", "selected.test_ci95")
_iou = at("similarity.iou_max_mean", "similarity.ci95.iou_max_mean")
_l2 = at("similarity.l2_nearest_mean", "similarity.ci95.l2_nearest_mean")
_matched = at("similarity.l2_matched_mean", "similarity.ci95.l2_matched_mean")
_performant = at("novel_and_performant.performant", "novel_and_performant.ci95.performant")
_joint = at("novel_and_performant.joint.1x", "novel_and_performant.ci95.joint.1x")
_joint_all = at("novel_and_performant.joint", "novel_and_performant.ci95.joint.1x")
_nll, _ece = at("test_nll.mean", "test_nll.ci95"), at("test_ece.mean", "test_ece.ci95")

# fmt: off
# Of tables with a row for every group: they read a group, and the originals with which it is compared.
GROUP_COLUMNS: dict[str, Column] = {
    "networks": Column("networks", "", at("n"), in_format("g"),
        "Networks in the group."),
    "independent": Column("independent", "", at("n_effective"), _count,
        "How many independent networks they count as in intervals; checkpoints of one run depend on each other."),
    "accuracy": Column("mean accuracy", "% (95 %)", _score, in_percent,
        "Mean test accuracy over the networks."),
    "difference": Column("minus originals", "points (95 %)", _difference, points,
        "Mean test accuracy minus that of the originals."),
    "selected": Column("best on val", "% (95 %)", _selected, in_percent,
        "Test accuracy of the network that is best on validation examples."),
    "std": Column("std", "points", at("score.std", scale=100), in_format(".2f"),
        "Standard deviation of the test accuracy over the networks."),
    "nll": Column("NLL", "(95 %)", _nll, in_format(".4f"),
        "Mean negative log-likelihood of the test labels, in nats."),
    "ece": Column("ECE", "(95 %)", _ece, in_format(".4f"),
        "Mean expected calibration error with 15 equal bins."),
    "iou_within": Column("IoU within", "", at("similarity.iou_mean"), in_format(".3f"),
        "IoU of wrong predictions between networks of the group."),
    "iou_nearest": Column("IoU to nearest", "(95 %)", _iou, in_format(".3f"),
        "IoU of wrong predictions with the original that is most alike."),
    "l2_nearest": Column("L2 to nearest", "(95 %)", _l2, in_format(".3g"),
        "Euclidean distance to the nearest original."),
    "yardsticks": Column("L2 in yardsticks", "(95 %)", _in_yardsticks, in_format(".3g"),
        "The same in yardsticks, the mean distance of an original to the nearest independent one."),
    "l2_matched": Column("after matching", "(95 %)", _matched, in_format(".3g"),
        "L2 to nearest with the hidden units permuted so that they fit best."),
    "cosine": Column("cosine distance", "", _cosine_distance, in_format(".2g"),
        "1 minus the largest cosine similarity to an original."),
    "spread": Column("spread", "", at("spread"), in_format(".2f"),
        "Distance from the originals' mean, in units of the originals' own."),
    "performant": Column("performant", "% (95 %)", _performant, in_whole_percent,
        "Networks whose test accuracy is not below the originals' mean."),
    "novel": Column("novel", "%", at("novel_and_performant.novel.1x"), in_whole_percent,
        "Networks that are farther than a yardstick from every original."),
    "novel_all": Column("novel at 1x / 2x / 4x", "%", at("novel_and_performant.novel"), _shares,
        "Networks that are farther than 1, 2, 4 yardsticks from every original."),
    "joint": Column("novel and performant", "% (95 %)", _joint, in_whole_percent,
        "Networks that are both."),
    "joint_all": Column("both at 1x / 2x / 4x", "% (95 %)", _joint_all, _shares,
        "Networks that are both novel at these multiples and performant."),
    "copies": Column("copies", "%", at("novel_and_performant.copied"), in_whole_percent,
        "Networks that are nearer to an original than a third of what originals are from their nearest other one."),
    "seconds": Column("seconds", "", at("cost.seconds"), _seconds,
        "What making the networks takes once the checkpoints are there."),
    "gain_per_second": Column("points per second", "", at("cost.gain_per_second", scale=100), _rate,
        "Gain in mean test accuracy over the originals, divided by the seconds."),
}
# In their place where networks are judged by another metric, which is `{metric}`.
SCORE_COLUMNS: dict[str, Column] = {
    "accuracy": Column("mean {metric}", "(95 %)", _score, quantity,
        "Mean {metric} of the networks."),
    "difference": Column("minus originals", "(95 %)", _difference, signed_number,
        "Mean {metric} minus that of the originals."),
    "selected": Column("best", "(95 %)", _selected, quantity,
        "The {metric} of the network that is best by what networks are chosen by."),
    "std": Column("std", "", at("score.std"), in_format(".3g"),
        "Standard deviation of the {metric} over the networks."),
    "performant": replace(GROUP_COLUMNS["performant"],
        meaning="Networks whose {metric} is not worse than the originals' mean."),
    "gain_per_second": Column("gain per second", "", at("cost.gain_per_second"), _rate,
        "How much better than the originals' the mean {metric} is, divided by the seconds."),
}
# With a row for every group that generated networks are compared with: the difference of the means, and of the best.
COMPARISON_COLUMNS: tuple[Column, ...] = (
    Column("means", "points (95 %)", at("difference", "ci95"), points,
        "Mean test accuracy of the generated networks minus that of the group."),
    Column("best on val", "points (95 %)", lambda mean, best: (best.difference, best.ci95), points,
        "The same for the networks of both that are best on validation examples."),
    Column("p (McNemar)", "", lambda mean, best: (best.p_value, None), in_format(".3f"),
        "Of McNemar's exact test of these."),
    Column("only generated right", "", lambda mean, best: (best.only_generated, None), in_format("d"),
        "Test examples on which the generated network alone is right."),
    Column("only the other right", "", lambda mean, best: (best.only_other, None), in_format("d"),
        "Test examples on which the other network alone is right."),
)
# In place of the first two.
SCORE_COMPARISON_COLUMNS: tuple[Column, ...] = (
    Column("means", "(95 %)", at("difference", "ci95"), signed_number,
        "Mean {metric} of the generated networks minus that of the group."),
    Column("best", "(95 %)", lambda mean, best: (best.difference, best.ci95), signed_number,
        "The same for the best networks of both."),
)
# With a row for every group that is compared with originals not seen: what was found.
DISTRIBUTION_COLUMNS: tuple[Column, ...] = (
    Column("two-sample accuracy", "%", at("two_sample_accuracy", "ci95.two_sample_accuracy"), in_whole_percent,
        "How often a classifier knows which of a draw and a held-out original is the draw; 50 when it cannot tell."),
    Column("p (MMD)", "", at("mmd_p"), in_format(".3f"),
        "That draws are as near to the held-out originals as originals seen are, by maximum mean discrepancy."),
    Column("nearest seen / not", "(95 %)", at("nearest_train_ratio", "ci95.nearest_train_ratio"), in_format(".2f"),
        "Distance to the nearest original seen over that to the nearest not seen, equally many of both."),
    Column("coverage", "%", at("coverage"), in_whole_percent,
        "Held-out originals with a draw nearer than their 5th nearest original."),
)
# With a row for every kind of rows that a denoiser has not seen.
HELD_OUT_COLUMNS: tuple[Column, ...] = (
    Column("loss", "", at("loss"), in_format(".3f"),
        "Mean squared error of the denoiser."),
    Column("white Gaussian", "", at("white_gaussian"), in_format(".3f"),
        "That of latents taken for white noise."),
    Column("Gaussian", "", at("gaussian"), in_format(".3f"),
        "That of a Gaussian with the latents' mean and covariance."),
    Column("minus Gaussian", "(95 %)", at("difference", "difference_ci95"), in_difference,
        "Of the denoiser minus that of this Gaussian, row by row."),
    Column("rows", "", at("n"), in_format("g"),
        "Checkpoints held out."),
)
# Of denoisers of conditions, beside those.
REGRESSION_COLUMNS: tuple[Column, ...] = (
    Column("regression", "", at("regression"), in_format(".3f"),
        "That of a Gaussian around a regression of the condition."),
    Column("minus regression", "(95 %)", at("regression_difference", "regression_difference_ci95"), in_difference,
        "Of the denoiser minus that of the Gaussian around a regression, row by row."),
)
# With a row for every ensemble: what was found, and the number of its networks.
ENSEMBLE_COLUMNS: tuple[Column, ...] = (
    Column("M", "", lambda found, size: (size, None), lambda size, _: size,
        "Networks in the ensemble."),
    Column("accuracy", "% (95 %)", at("accuracy.mean", "accuracy.ci95"), in_percent,
        "Test accuracy of the averaged probabilities."),
    Column("NLL", "(95 %)", at("nll.mean", "nll.ci95"), in_format(".4f"),
        "Their negative log-likelihood of the test labels, in nats."),
    Column("ECE", "(95 %)", at("ece.mean", "ece.ci95"), in_format(".4f"),
        "Their expected calibration error with 15 equal bins."),
)
# fmt: on


def group_columns(names: Iterable[str], metric: Metric) -> dict[str, Column]:
    """Columns of [`GROUP_COLUMNS`] by their names, as they are of a metric."""
    if metric.is_accuracy:
        return {name: GROUP_COLUMNS[name] for name in names}
    return {name: _of_metric(SCORE_COLUMNS.get(name, GROUP_COLUMNS[name]), metric) for name in names}


def comparison_columns(metric: Metric) -> tuple[Column, ...]:
    """[`COMPARISON_COLUMNS`] as they are of a metric."""
    if metric.is_accuracy:
        return COMPARISON_COLUMNS
    return tuple(_of_metric(column, metric) for column in SCORE_COMPARISON_COLUMNS)


def _of_metric(column: Column, metric: Metric) -> Column:
    texts = {key: getattr(column, key).replace("{metric}", metric.name) for key in ("name", "meaning")}
    return replace(column, **texts)


def group_column(group: str, key: str, **changes: str) -> Column:
    """A column of [`GROUP_COLUMNS`] for rows about something that has `groups` by name, such as a run: one of them.

    Nothing is known of a group that is not there. `changes` are other fields of the column, such as its name.
    """
    column = GROUP_COLUMNS[key]

    def read(row: Mapping[str, Any]) -> Value:
        groups = row.get("groups", {})
        return column.read(*(GroupMetrics.model_validate(groups.get(name, {})) for name in (group, "original")))

    return replace(column, read=read, **changes)


def make_table(
    first: str,
    columns: Sequence[Column],
    rows: Iterable[tuple[str, tuple]],
    title: str = "",
    *,
    bars: Column | None = None,
    folded: bool = False,
) -> ReportTable:
    """Make a table of rows given by their names and what the columns read; `first` is the header of the names.

    The intervals of the column `bars` are drawn where the table is; few look at a `folded` one.
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
        names, plain, bars, known (keys of [`GROUP_COLUMNS`]): The columns; those without their intervals; that whose
            intervals are drawn where the table is; that which a group needs a value for to be in the table.
        title (`str`, *optional*): Its caption.
        all_columns (`bool`, *optional*, defaults to `False`): Keep columns of which nothing is known.
    """
    rows = [(name, (group, metrics.original)) for name, group in metrics.groups.items()]
    if known is not None:
        rows = [(name, row) for name, row in rows if GROUP_COLUMNS[known].cell(*row) != MISSING]
    known_columns = group_columns(names, metrics.metric)
    columns = [column.plain if name in plain else column for name, column in known_columns.items()]
    if not all_columns:
        columns = [column for column in columns if any(column.cell(*row) != MISSING for _, row in rows)]
    return make_table("group", columns, rows, title, bars=bars and known_columns[bars])


def fold_header(header: str, width: int) -> str:
    """A header in lines of `width`, the unit in a line of its own; words are kept whole."""
    parts = header.rpartition(", ")
    lines = [f"{parts[0]},", parts[2]] if parts[0] else [header]
    # A number and its unit stay together.
    tied = (part.replace("95 %", "95\u00a0%") for part in lines)
    folded = (line for part in tied for line in wrap(part, width, break_long_words=False))
    return "\n".join(folded).replace("\u00a0", " ")
