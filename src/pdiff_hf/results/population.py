"""Records of the part `population` of `metrics.json`: groups of networks as populations, beside held-out originals."""

from __future__ import annotations

from .records import Difference, Interval, Record

# A network fits a population when it is no further below the worst held-out original of it.
FIT_MARGIN = 0.01


class PopulationIntervals(Record):
    """Intervals over networks, by bootstrap; of `copies` exact, of `near` by Student's t; held-out originals are as
    they are, but for the two ratios.
    """

    iou: Interval | None = None
    disagreement: Interval | None = None
    iou_ratio: Interval | None = None
    disagreement_ratio: Interval | None = None
    near: Interval | None = None
    side: Interval | None = None
    copies: Interval | None = None
    fit_share: Interval | None = None


class Population(Record):
    """A group of networks as a population, by what the networks compute on test examples.

    Distances are between functions: root mean squares of differences of centred logits. Group `original` are the
    originals that were held out, `seen` those that were trained on. Of a group of one network nothing is known of
    pairs and of ensembles.
    """

    accuracy: float | None = None
    """Mean test accuracy; of several populations, that in the one that a network fits best."""
    accuracy_min: float | None = None
    """Of the worst network."""
    accuracy_difference: Difference = Difference()
    """Mean test accuracy minus that of the held-out originals."""
    iou: float | None = None
    """Mean IoU of wrong predictions, over pairs of networks of one population."""
    iou_ratio: float | None = None
    """`iou` over that of the held-out originals."""
    disagreement: float | None = None
    """Mean share of test examples on which two networks of one population say different things."""
    disagreement_ratio: float | None = None
    """`disagreement` over that of the held-out originals."""
    ensemble: float | None = None
    """Test accuracy of the averaged probabilities of `ensemble_size` networks, those of one population together."""
    ensemble_difference: Difference = Difference()
    """`ensemble` minus that of as many held-out originals."""
    ensemble_size: int | float | None = None
    """As many of every group, at most."""
    near: float | None = None
    """Mean distance to the nearest network that was seen, over the same mean of the held-out originals."""
    side: float | None = None
    """Median of the distance to the nearest network seen over that to the nearest not seen, equally many of both: 1
    without a preference, 0 for copies."""
    copies: float | None = None
    """Share nearer to a network seen than half of the smallest such distance of a held-out original."""
    agreement: float | None = None
    """Mean share of test examples on which a network says what the nearest one that was seen says."""
    two_sample_accuracy: float | None = None
    """How often a nearest-neighbour classifier knows which of a network and a held-out original is which: ½ when it
    cannot tell."""
    two_sample_p: float | None = None
    """p-value of this accuracy among random exchanges of the two."""
    mmd_p: float | None = None
    """p-value of the maximum mean discrepancy from the held-out originals among random exchanges of the two."""
    fit_share: float | None = None
    """Share of networks no more than a point below the worst held-out original of the population they fit best."""
    shares: dict[str, float] | None = None
    """These networks by population, as shares of all networks; none where a zoo has one population."""
    n: int | float | None = None
    """Networks."""
    num_inputs: int | float | None = None
    """Test examples on which functions are compared and ensembles measured: all, or a random part where the logits of
    all networks would take too much memory."""
    finding: str | None = None
    """What the group is beside the held-out originals: see `finding` of the file."""
    ci95: PopulationIntervals = PopulationIntervals()
    per_seed: dict[str, list[float | None]] | None = None
    """Of several seeds, the values of each one by one."""
