"""One plain sentence about what an evaluation found."""

from __future__ import annotations

from ..results.metrics import Metrics
from ..results.records import Difference
from ..results.text import percent, points

RELATIONS = {-1: "worse than", 0: "not distinguishable from", 1: "better than"}
# Share of copies from which a generator is called a copying one.
COPYING_SHARE = 0.5
# Averages of 4 independent originals lie half as far from the originals' mean as originals do.
AVERAGED_SPREAD = 0.5


def make_verdict(metrics: Metrics) -> tuple[str, str]:
    """Say what the generated networks are, compared with the originals and with averages of them.

    A difference counts when its 95 % interval excludes zero. In this order: `copying` when most networks are copies of
    originals, `worse` than the originals, `better` than the originals and than every kind of average, `averaging` when
    a gain over the originals is no more than that of averaging or the networks lie where averages lie, and `no_gain`
    otherwise; `none` without generated networks. Against an average of originals stands one generated network; how
    the averages of both compare is said beside it and decides nothing.

    Returns the finding and the sentence.
    """
    comparisons = metrics.comparisons
    if "generated" not in metrics.groups or "original" not in comparisons:
        return "none", "No generated networks were evaluated."
    group = metrics.generated
    shares = group.novel_and_performant
    if shares.copied is not None and shares.copied >= COPYING_SHARE:
        return "copying", (
            f"The generator copies: {percent(shares.copied, digits=0)} of its networks are closer to an original than "
            "a third of the distance that originals have from each other."
        )

    # 1. Against the originals, and against the average that decides: the one with the least in favour of the generator
    gain = comparisons["original"].sign
    least = metrics.hardest_average()
    over_average = comparisons[least].sign if least else gain
    sentence = f"Generated networks are {RELATIONS[gain]} the originals ({_points(comparisons['original'])})"
    if least:
        # A single draw loses to an average of independent ones even where both have the same distribution.
        against = f"one network against an average, {RELATIONS[over_average]} {metrics.groups[least].description}"
        sentence += f"{' and' if gain == over_average else ', but'}, {against} ({_points(comparisons[least])})"

    # 2. What that is called
    is_averaged = group.spread is not None and group.spread <= AVERAGED_SPREAD
    if gain < 0:
        finding = "worse"
    elif gain > 0 and over_average > 0:
        finding = "better"
    elif gain > 0 or (is_averaged and over_average <= 0):
        finding = "averaging"
        sentence = sentence.replace("Generated networks are", "No better than averaging: generated networks are", 1)
    else:
        finding = "no_gain"

    # 3. What else decides about their use
    if soup := metrics.soup_comparisons.get("uniform_soup"):
        relation = f"{RELATIONS[soup.sign]} that of the originals"
        sentence += f"; average against average, their uniform soup is {relation} ({_points(soup)})"
    for name, rival in metrics.rivals().items():
        if rival.role == "rival" and comparisons[name].sign < 0:
            sentence += f"; {rival.description} gives more ({_points(comparisons[name])} for generation)"
    novel, joint = (percent(share["1x"], digits=0) for share in (shares.novel, shares.joint))
    if shares.novel["1x"] < 0.5:
        sentence += f"; only {novel} of them are farther from every original than independent originals are"
    else:
        sentence += f"; {joint} of them are both novel and performant"
    return finding, sentence + "."


def _points(comparison: Difference) -> str:
    low, high = map(points, comparison.ci95)
    return f"{points(comparison.difference)} points, 95 % interval {low} to {high}"
