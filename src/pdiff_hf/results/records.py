"""Records of `metrics.json`: what is known of a group of networks, of a difference and of an ensemble.

Every key may be missing, as in files of earlier versions: then its attribute is `None` or empty, and it is not
written. Keys of later versions are kept and written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .text import sign, signed

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Record(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, populate_by_name=True)

    @classmethod
    def parse(cls, values: Any, name: str | Path) -> Self:
        """Check the content of a file of this `name`; raises `ValueError` for a value of another kind."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{key}." for key in first["loc"]).removesuffix(".") or "its content"
            raise ValueError(
                f"{name}: {key}: {first['msg']}, found {first['input']!r:.200}; make it again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The keys that are known, as in the file."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class Mean(Record):
    """A mean over networks or over draws."""

    mean: float | None = None
    std: float | None = None
    """Over the networks, as `min` and `max`."""
    min: float | None = None
    max: float | None = None
    ci95: Interval | None = None
    """Of the mean."""
    per_seed: list[float | None] | None = None
    """The means of several seeds, one by one."""


class Difference(Record):
    """A difference of mean test accuracies, or scores."""

    difference: float | None = None
    ci95: Interval | None = None
    """Paired over the test examples."""
    per_seed: list[float | None] | None = None
    """The differences of several seeds, one by one."""

    @property
    def sign(self) -> int:
        """1 or -1 when the interval excludes zero, else 0."""
        return sign(self.ci95)


class SelectedDifference(Difference):
    """A difference of the test accuracies of two networks, the selected ones of their groups."""

    p_value: float | None = None
    """Of McNemar's exact test."""
    only_generated: int | None = None
    """Test examples on which the generated network alone is right."""
    only_other: int | None = None
    """Test examples on which the other network alone is right."""


class Selected(Record):
    """The network of a group with the best validation accuracy; ties: the lowest validation NLL."""

    index: int | None = None
    """Its row in the group."""
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    val_score: float | None = None
    """In place of accuracies, where networks are judged by another metric."""
    test_score: float | None = None
    test_ci95: Interval | None = None
    """Of the test accuracy, exact; of a score, over test examples."""
    per_seed: list[float | None] | None = None
    """The test accuracies of several seeds, one by one."""

    @property
    def score(self) -> float | None:
        """The test accuracy, or that which stands in its place."""
        return self.test_accuracy if self.test_score is None else self.test_score

    @property
    def val(self) -> float | None:
        """The same on validation examples."""
        return self.val_accuracy if self.val_score is None else self.val_score


class SimilarityIntervals(Record):
    """Intervals of mean similarities, over networks; the originals that they are compared with are these."""

    iou_max_mean: Interval | None = None
    l2_nearest_mean: Interval | None = None
    l2_independent_mean: Interval | None = None
    cosine_nearest_mean: Interval | None = None
    l2_matched_mean: Interval | None = None


class Similarity(Record):
    """How alike networks are; originals are compared with the other originals."""

    iou_mean: float | None = None
    """Mean pairwise IoU of wrong predictions within the group."""
    iou_max_mean: float | None = None
    """Mean over networks of the largest IoU with an original."""
    l2_nearest_mean: float | None = None
    """Mean over networks of the Euclidean distance to the nearest original."""
    l2_independent_mean: float | None = None
    """The yardstick: of the originals, the same to the nearest independent one, of another run or an autocorrelation
    time away."""
    cosine_nearest_mean: float | None = None
    """Mean over networks of the largest cosine similarity to an original."""
    l2_matched_mean: float | None = None
    """`l2_nearest_mean` after permutation matching; perceptrons and plain convolutional networks only."""
    l2_nearest_min: float | None = None
    """The smallest distance to an original."""
    ci95: SimilarityIntervals = SimilarityIntervals()

    @property
    def yardstick(self) -> float | None:
        """Of originals, what is usual among independent ones; files of schema 1 took all for independent."""
        return self.l2_nearest_mean if self.l2_independent_mean is None else self.l2_independent_mean


class ShareIntervals(Record):
    """Exact intervals of shares, over networks."""

    performant: Interval | None = None
    novel: dict[str, Interval | None] = {}
    joint: dict[str, Interval | None] = {}


class Shares(Record):
    """Shares of the networks of a group."""

    performant: float | None = None
    """Test accuracy not below the originals' mean, or a score that is not worse."""
    novel: dict[str, float | None] = {}
    """Farther from every original than 1, 2, 4 yardsticks (`1x`, `2x`, `4x`)."""
    joint: dict[str, float | None] = {}
    """Both, by the same multiples."""
    copied: float | None = None
    """Nearer to an original than a third of what originals are from their nearest other one on average."""
    ci95: ShareIntervals = ShareIntervals()


class Cost(Record):
    """What the networks of a group cost once the checkpoints are there."""

    seconds: float | None = None
    """Of `generated`: all stages from the autoencoder on."""
    gain_per_second: float | None = None
    """`difference_to_original` divided by them; of a score of which less is better, its negative."""


class GroupMetrics(Record):
    """The numbers of a group of networks."""

    n: int | float | None = None
    """Networks in the group."""
    n_effective: float | None = None
    """How many independent networks they count as in the intervals: fewer where they are checkpoints of one run."""
    test_accuracy: Mean = Mean()
    """Fractions; the interval is over test examples and networks."""
    test_score: Mean = Mean()
    """In place of accuracy, NLL and ECE, where networks are judged by another metric."""
    difference_to_original: Difference = Difference()
    """Mean test accuracy, or score, minus the originals'."""
    test_nll: Mean = Mean()
    """In nats; the interval is over test examples and networks."""
    test_ece: Mean = Mean()
    """Expected calibration error with 15 equal bins; the interval is over networks, on these test examples."""
    selected: Selected = Selected()
    similarity: Similarity = Similarity()
    spread: float | None = None
    """Root mean square distance to the originals' mean, in units of the originals' own: 1 for networks as spread out
    as they are, 1/√n for averages of n independent ones."""
    novel_and_performant: Shares = Shares()
    cost: Cost = Cost()
    chosen: dict[str, Any] = {}
    """What was chosen for the whole group on validation examples: of merges `scale`, `density`, and `base`, what task
    vectors are differences from, `start` or `mean`."""
    role: str | None = None
    """`original`, `generated`, `average` (of originals, which a generator has to beat), `rival` (another way that it
    has to beat), `generated_average` (of generated networks, to be set against the same of originals), or
    `baseline`."""
    label: str | None = None
    """Its name as people read it."""
    description: str | None = None
    """What its networks are, as a part of a sentence."""
    color: str | None = None
    """Of its marks in figures: a name of the report's palette."""

    @property
    def score(self) -> Mean:
        """The test accuracy, or that which stands in its place."""
        return self.test_accuracy if self.test_score.mean is None else self.test_score


class Merge(Selected):
    """A merge of adapters, one network, and what was checked of it."""

    difference: Difference = Difference()
    """Mean test accuracy, or score, of the generated networks minus that of the merge."""
    num_adapters: int | float | None = None
    """How many were merged."""
    rank: int | float | None = None
    """Of the merge; the exact mean of what adapters add has the sum of theirs."""
    identity_error: float | None = None
    """By how much of their spread the outputs of one adapter change at most when it is merged alone or with its copy,
    heads and scalings being kept beside."""
    identity_error_as_is: float | None = None
    """The same when peft alone merges the adapter as it is; `None` where it refuses, and of other merges."""
    delta_error: float | None = None
    """Relative error of what it adds to the weights against the exact mean."""
    reload_error: float | None = None
    """By how much of their spread its outputs change at most when it is written and loaded by peft; of the exact mean,
    when it is merged into the base."""
    chosen: dict[str, Any] = {}
    """`weight` of each adapter and `density`, chosen on validation examples."""
    description: str | None = None
    """What it is, as a part of a sentence."""
    note: str | None = None
    """Why there is none, or what peft alone does to these adapters."""


class Ensemble(Record):
    """Test metrics of averaged probabilities, means over draws of the networks."""

    accuracy: Mean = Mean()
    nll: Mean = Mean()
    ece: Mean = Mean()


class HeldOut(Record):
    """What the denoiser makes of rows that it has not seen: mean squared errors of its predictions, over timesteps."""

    loss: float | None = None
    white_gaussian: float | None = None
    """Of latents taken for white noise: what is lost without having learned anything."""
    gaussian: float | None = None
    """Of the closed form for a Gaussian with the latents' mean and covariance."""
    difference: float | None = None
    """`loss` minus `gaussian`."""
    difference_ci95: Interval | None = None
    """Paired over the rows, on the same noise."""
    n: int | float | None = None
    """Rows."""
    regression: float | None = None
    """Of a denoiser of conditions: the loss of its closed form, a Gaussian around a regression of the condition."""
    regression_difference: float | None = None
    """`loss` minus `regression`."""
    regression_difference_ci95: Interval | None = None
    """Paired over the rows, on the same noise."""
    unconditioned: float | None = None
    """Of a denoiser of conditions: its loss when it is told none."""
    shuffled: float | None = None
    """The same when it is told those of other rows."""
    per_seed: list[float | None] | None = None
    """The differences of several seeds, one by one."""

    @property
    def is_beyond_what_was_learned(self) -> bool:
        """Whether white noise, of which nothing was learned, is the better guess."""
        known = self.loss is not None and self.white_gaussian is not None
        return known and self.white_gaussian < self.loss

    @model_validator(mode="after")
    def _know_the_difference(self) -> HeldOut:
        if self.difference is None and self.loss is not None and self.gaussian is not None:
            self.difference = self.loss - self.gaussian
        return self


class Denoiser(Record):
    """What the denoiser has learned: the content of `denoiser.json`, beside it."""

    kept_step: int | float | None = None
    """Of its training, the step whose weights were kept; 0 is the Gaussian of the latents, around a regression of the
    condition where that explains something."""
    validate_: str | None = Field(None, alias="validate")
    """Rows by which it was chosen: `between`, `block` or `run`; `none` where it is the last step."""
    num_train: int | float | None = None
    """Rows that it was trained on."""
    num_validation: int | float | None = None
    """Rows that chose the step."""
    explained: float | None = None
    """Share of the variance of the latents that a regression predicts of conditions left out; `None` without one."""
    curve: dict[str, float | None] = {}
    """Loss on these, by step."""
    held_out: dict[str, HeldOut] = {}
    """By what rows are to those seen: `between`, `block`, `end`, `run`."""

    @property
    def closed_form(self) -> str:
        """What it is before its first step of training."""
        if self.explained is None:
            return "the Gaussian of the latents"
        return (
            "the Gaussian of the latents around a regression of the condition, which predicts "
            f"{100 * self.explained:.0f} % of their variance for conditions left out"
        )

    def describe(self) -> str:
        """What it has learned in one sentence, without a full stop."""
        if self.kept_step == 0:
            return (
                f"{self.closed_form}, step 0: by {self.num_validation:g} checkpoints that were not trained "
                f"on (diffusion.validate={self.validate_}) no later step is better beyond doubt"
            )
        text = "" if self.kept_step is None else f"step {self.kept_step:g}"
        between = self.held_out.get("between", HeldOut())
        if between.loss is None:
            return text
        text += f"; loss on unseen checkpoints between neighbours {between.loss:.3f}, white Gaussian "
        text += f"{between.white_gaussian:.3f}"
        if between.gaussian is None:
            return text
        text += f", full Gaussian {between.gaussian:.3f} ({_difference(between.difference, between.difference_ci95)})"
        if between.regression is not None:
            difference = _difference(between.regression_difference, between.regression_difference_ci95)
            text += f", Gaussian around a regression of the condition {between.regression:.3f} ({difference})"
        if between.unconditioned is not None and between.shuffled is not None:
            text += f"; told no condition {between.unconditioned:.3f}, those of others {between.shuffled:.3f}"
        return text


def _difference(value: float | None, ci95: Interval | None) -> str:
    """A difference of losses with its interval, in words."""
    if ci95 is None:
        return f"difference {signed(value, '.3f')}"
    low, high = (signed(end, ".3f") for end in ci95)
    return f"difference {signed(value, '.3f')}, 95 % {low} to {high}"


class DistributionIntervals(Record):
    """Intervals of the tests of a distribution."""

    two_sample_accuracy: Interval | None = None
    """Of `original` alone: where those of 95 % of random halves of the rows seen fall (normal approximation)."""
    nearest_train_ratio: Interval | None = None
    """Over the draws."""


class Distribution(Record):
    """Whether a group is drawn from the distribution of the originals, in latent space.

    The group `original` is what rows seen reach in the place of a group.
    """

    two_sample_accuracy: float | None = None
    """How often a classifier knows which of a draw and a held-out original is the draw: ½ when it cannot tell, less
    where draws are copies of rows seen."""
    mmd_p: float | None = None
    """p-value of the maximum mean discrepancy to held-out originals being no larger than that of rows seen."""
    nearest_train_ratio: float | None = None
    """Distance to the nearest row seen over that to the nearest not seen, equally many of both: below 1 it copies."""
    coverage: float | None = None
    """Share of the held-out originals with a draw nearer than their 5th nearest original."""
    n: int | float | None = None
    """Draws; of `original`, rows seen that take their place."""
    n_effective: float | None = None
    """As how many independent rows the originals count; of `original` alone, and not where their order is unknown."""
    ci95: DistributionIntervals = DistributionIntervals()
