"""One plain sentence about what an evaluation found."""

from __future__ import annotations

from ..results.metrics import Metrics
from ..results.population import Population
from ..results.text import number, percent

RELATIONS = {-1: "worse than", 0: "not distinguishable from", 1: "better than"}
# Share of copies from which a generator is called a copying one.
COPYING_SHARE = 0.5
# Averages of 4 independent originals lie half as far from the originals' mean as originals do.
AVERAGED_SPREAD = 0.5

# Of a population of independent networks: copies, and what is nearer to networks seen than to others, from here on.
MAX_COPIES, MIN_SIDE = 0.1, 0.75
# Disagreement of pairs in units of that of held-out originals: one function, fewer, and more than they.
COLLAPSED, LESS_DIVERSE, MORE_DIVERSE = 0.5, 0.85, 1.15
HEADS = {
    "copying": "The generator gives its training networks back",
    "collapsed": "Collapsed towards one function",
    "worse": "Worse",
    "less_diverse": "Less diverse",
    "more_diverse": "More diverse",
    "equal_population": "An equal population",
}
# What a group may fall short of the generated networks and still do as well: in diversity and distance from those
# seen, as a share; in copies.
AS_WELL, AS_WELL_COPIES = 0.9, 0.02


def make_verdict(metrics: Metrics) -> tuple[str, str]:
    """Say what the generated networks are, compared with the originals and with averages of them.

    A difference counts when its 95 % interval excludes zero. In this order: `copying` when most networks are copies of
    originals, `worse` than the originals, `better` than the originals and than every kind of average, `averaging` when
    a gain over the originals is no more than that of averaging or the networks lie where averages lie, and `no_gain`
    otherwise; `none` without generated networks. Against an average of originals stands one generated network; how
    the averages of both compare is said beside it and decides nothing.

    Generated networks that stand beside held-out originals of other runs than those seen, `metrics.population`, are
    judged as a population, see [`population_finding`].

    Returns the finding and the sentence.
    """
    if "generated" in metrics.population:
        return _judge_population(metrics)
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
    metric = metrics.metric
    gain = metric.sign(comparisons["original"])
    least = metrics.hardest_average()
    over_average = metric.sign(comparisons[least]) if least else gain
    sentence = f"Generated networks are {RELATIONS[gain]} the originals ({metric.describe(comparisons['original'])})"
    if least:
        # A single draw loses to an average of independent ones even where both have the same distribution.
        against = f"one network against an average, {RELATIONS[over_average]} {metrics.groups[least].description}"
        sentence += f"{' and' if gain == over_average else ', but'}, {against} ({metric.describe(comparisons[least])})"

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
    if (soup := metrics.soup_comparisons.get("uniform_soup")) and soup.ci95 is not None:
        relation = f"{RELATIONS[metric.sign(soup)]} that of the originals"
        sentence += f"; average against average, their uniform soup is {relation} ({metric.describe(soup)})"
    for name, rival in metrics.rivals().items():
        if rival.role == "rival" and metric.sign(comparisons[name]) < 0:
            sentence += f"; {rival.description} gives more ({metric.describe(comparisons[name])} for generation)"
    novel, joint = (percent(share["1x"], digits=0) for share in (shares.novel, shares.joint))
    if shares.novel["1x"] < 0.5:
        sentence += f"; only {novel} of them are farther from every original than independent originals are"
    else:
        sentence += f"; {joint} of them are both novel and performant"
    return finding, sentence + "."


def population_finding(found: Population) -> str | None:
    """What a group is beside held-out originals, in this order.

    `copying`: a tenth of the networks are copies of networks seen, or they are nearer to these than to others by a
    quarter (`side`). `collapsed`: two networks disagree half as often as two originals. `worse`: less accurate, the
    interval excludes zero. `less_diverse`, `more_diverse`: two disagree less than 0.85 or more than 1.15 times as
    often. `equal_population` otherwise; `None` for a single network that is neither a copy nor worse.
    """
    diversity = found.disagreement_ratio
    if (found.copies or 0) >= MAX_COPIES or (found.side is not None and found.side < MIN_SIDE):
        return "copying"
    if diversity is not None and diversity < COLLAPSED:
        return "collapsed"
    if found.accuracy_difference.sign < 0:
        return "worse"
    if diversity is None:
        return None
    if LESS_DIVERSE <= diversity <= MORE_DIVERSE:
        return "equal_population"
    return "less_diverse" if diversity < LESS_DIVERSE else "more_diverse"


def _judge_population(metrics: Metrics) -> tuple[str, str]:
    found = metrics.population["generated"]
    finding = population_finding(found)
    if finding is None:
        return "none", "One generated network is no population."
    # 1. What any generator is asked, and what those seen have as well
    difference, ensemble = found.accuracy_difference, found.ensemble_difference
    relation = f"{RELATIONS[difference.sign]} held-out originals in accuracy ({metrics.metric.describe(difference)})"
    sentence = f"{HEADS[finding]}: generated networks are {relation}"
    if found.disagreement_ratio is not None:
        ratio = number(found.disagreement_ratio, ".2f", found.ci95.disagreement_ratio)
        sentence += f", two of them disagree {ratio} times as often as two of these"
    if ensemble.difference is not None:
        relation = f"{RELATIONS[ensemble.sign]} as many of these ({metrics.metric.describe(ensemble)})"
        sentence += f", {found.ensemble_size:g} together are {relation}"

    # 2. What only new networks have
    sentence += f"; {percent(found.copies, digits=0)} are copies of networks seen"
    if found.near is not None and found.side is not None:
        sentence += f", and as functions they are {found.near:.2f} times as far from these as held-out originals are, "
        sentence += f"{found.side:.2f} times as far as from networks not seen"
    if found.shares:
        sentence += f"; {percent(found.fit_share, digits=0)} fit a population of the zoo"

    # 3. What did not need the generator
    names = [group.description or name for name, group in metrics.groups.items() if _does_as_well(name, metrics)]
    if names:
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        sentence += f"; {listed} {'do' if names[1:] else 'does'} as well"
    return finding, f"{sentence}."


def _does_as_well(name: str, metrics: Metrics) -> bool:
    """Whether a simpler group is no less accurate, diverse and new than the generated networks."""
    ours, theirs, group = metrics.population["generated"], metrics.population.get(name), metrics.groups[name]
    is_simpler = group.role in ("average", "rival", "baseline") and name != "reconstructed"
    if theirs is None or not is_simpler or name not in metrics.comparisons or metrics.comparisons[name].sign > 0:
        return False
    pairs = [(getattr(theirs, key), getattr(ours, key)) for key in ("disagreement_ratio", "near", "side")]
    return theirs.copies <= ours.copies + AS_WELL_COPIES and all(
        None not in pair and pair[0] >= AS_WELL * pair[1] for pair in pairs
    )
