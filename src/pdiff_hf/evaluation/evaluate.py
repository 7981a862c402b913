"""The protocol: choose on validation examples, report on test examples, treat every group alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..data.vectors import Vectors
from ..results.metric import Metric
from ..results.metrics import SCHEMA, Metrics
from ..results.records import Difference, SelectedDifference
from .autocorrelation import RunMemory, independent_distance
from .ensembles import EnsembleEvaluator
from .groups import Groups, count_independent, find_group, is_shown
from .intervals import accuracy_difference, mean_interval, paired_comparison
from .matching import nearest_matched_distance
from .outputs import EvaluatorOutput
from .permutations import PermutationSpec
from .population import choose_inputs, measure_populations
from .scores import NetworkEvaluator, NetworkScores
from .similarity import Nearness, measure_nearness, wrong_iou
from .summary import GroupEvaluation, summarize_group
from .verdict import make_verdict

MAX_IOU_NETWORKS = 40
# Of a zoo, those of which distances after permutation matching are measured.
MATCHED_GROUPS = ("original", "reconstructed", "generated")


@dataclass
class EvaluationResult:
    """What [`evaluate_groups`] finds: numbers per network by group, and what they come to.

    `iou` `(m, m)` is the IoU of wrong predictions between some networks of some groups, and `iou_sizes` how many of
    which group these are, in consecutive blocks; `None` and empty where networks give no predictions.
    """

    groups: dict[str, GroupEvaluation]
    metrics: Metrics
    iou: torch.Tensor | None
    iou_sizes: dict[str, int]


def evaluate_groups(
    groups: Mapping[str, Vectors],
    val: NetworkEvaluator,
    test: NetworkEvaluator,
    *,
    memory: RunMemory | None = None,
    permutations: PermutationSpec | None = None,
    seconds: Mapping[str, float] | None = None,
    chosen: Mapping[str, Mapping] | None = None,
    extend: Callable[[Vectors, str], Vectors] | None = None,
    n_effective: Mapping[str, float] | None = None,
    apart: tuple[torch.Tensor, torch.Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Evaluate groups of networks under one protocol, one group after another.

    *Novel*: L2 distance to the nearest original above the yardstick, the mean distance of an original to the nearest
    independent one (and 2 and 4 times that). *Copied*: that distance below a third of the mean distance of an original
    to the nearest other one, which on a trajectory is its neighbour. *Performant*: test accuracy, or another score,
    not worse than the originals' mean.

    What is made of predictions, such as IoU, calibration, ensembles and populations, is left out where networks are
    judged by another metric than accuracy.

    Args:
        groups (`Mapping[str, Vectors]`): Networks `(n, D)` by group name, such as [`Groups`], which makes each when it
            is its turn; `original` is required.
        val, test ([`NetworkEvaluator`]): On the examples that networks are chosen on, and on those of all that is
            reported; one and the same where nobody tells these apart.
        memory ([`RunMemory`], *optional*): Which originals are independent of which; all by default.
        permutations ([`PermutationSpec`], *optional*): Of [`find_permutations`]; then distances to the nearest
            original after permutation matching are reported too.
        seconds (`Mapping[str, float]`, *optional*): What making the networks of a group took; read when all are made.
        chosen (`Mapping[str, Mapping]`, *optional*): What was chosen on validation examples for a group as a whole,
            such as a scale; read when all are made.
        extend (`Callable`, *optional*): Gives of a group's networks `(n, D)` and its name the same networks `(n, E)`
            in the evaluators' layout, where it has more tensors than count for distances.
        n_effective (`Mapping[str, float]`, *optional*): How many independent networks those of other groups count as
            in intervals over networks; see [`count_independent`] for what is not given.
        apart (`tuple[torch.Tensor, torch.Tensor]`, *optional*): Rows of `original` that were seen and that were held
            out, of [`unseen_runs`]: then all groups are compared with the latter as populations.
        seed (`int`, *optional*, defaults to 0): Of the ensembles' draws and of the bootstrap.
        device (`torch.device` or `str`, *optional*): Where distances are computed, where the networks are by default.

    Raises:
        ValueError: no group `original`, or a group that does not fit the layout.
    """
    if "original" not in groups:
        raise ValueError(f"expected a group 'original' to compare with, found {sorted(groups)}")
    metric, originals = test.metric, groups["original"]
    memory = RunMemory.independent(len(originals)) if memory is None else memory
    if len(memory) != len(originals):
        raise ValueError(f"expected the memory of {len(originals)} originals, found that of {len(memory)} rows.")
    inputs, options = None, {}
    if apart is not None and metric.is_accuracy:
        num_networks = groups.num_networks if isinstance(groups, Groups) else sum(map(len, groups.values()))
        inputs = choose_inputs(test.num_examples, test.num_classes, num_networks, seed)
        options = {"keep": inputs}
    # Networks of several populations, which have other labels, are no ensemble.
    has_ensembles = metric.is_accuracy and not test.populations
    of_ensembles = EnsembleEvaluator(test, seed=seed) if has_ensembles else None
    ensembles: dict[str, dict] = {}

    # 1. Every group, of which no other may have room in memory. Of independent networks matching takes long, and as
    # functions all are compared anyway
    matched_groups = groups if apart is None else MATCHED_GROUPS
    on_val, on_test, nearness, matched = {}, {}, {}, {}
    for name, vectors in groups.items():
        is_original = name == "original"
        networks = vectors if extend is None else extend(vectors, name)
        on_val[name] = on_test[name] = val.predict(networks)
        if test is not val or inputs is not None:
            on_test[name] = test.predict(networks, **options)
        nearness[name] = measure_nearness(vectors, originals, is_original, device)
        if permutations is not None and name in matched_groups:
            matched[name] = nearest_matched_distance(vectors, originals, permutations, is_original, device)
        if has_ensembles and is_shown(name, "ensembles"):
            ensembles[name] = of_ensembles.evaluate(networks)
        del vectors, networks
    scores = {name: output.scores for name, output in on_test.items()}
    wrong = {name: output.wrong for name, output in on_test.items()} if metric.is_accuracy else {}

    # 2. What the numbers of all networks come to
    known = {"original": memory.count_independent(), **(n_effective or {})}
    sizes = {name: len(output) for name, output in scores.items()}
    counts = count_independent(sizes, {name: found.spread for name, found in nearness.items()}, known)
    selected = {name: _select(output, metric) for name, output in on_val.items()}
    evaluations = {
        name: _evaluate_group(
            name,
            on_val,
            on_test,
            nearness[name],
            independent_distance(originals, memory, device) if name == "original" else None,
            matched.get(name),
            counts,
            selected[name],
        )
        for name in scores
    }
    summaries = {
        name: summarize_group(
            name,
            group,
            evaluations["original"],
            scores[name],
            metric=metric,
            losses=on_test[name].losses if metric.is_accuracy else None,
            iou=wrong_iou(wrong[name], wrong[name]) if metric.is_accuracy else None,
            spread=nearness[name].spread,
            seconds=(seconds or {}).get(name),
            chosen=(chosen or {}).get(name),
        )
        for name, group in evaluations.items()
    }

    # 3. Groups against each other. Generated networks come first among the ensembles
    if has_ensembles:
        ensembles = {name: ensembles[name] for name in sorted(ensembles, key=lambda name: name != "generated")}
        best = _best_single(on_val, selected)
        networks = groups[best] if extend is None else extend(groups[best], best)
        ensembles["best_single"] = of_ensembles.evaluate(networks[selected[best] : selected[best] + 1])
    metrics = Metrics(
        version=SCHEMA,
        num_parameters=originals.shape[1],
        num_test=test.num_examples,
        groups=summaries,
        comparisons={},
        selected_comparisons={},
        soup_comparisons={},
        ensembles=ensembles,
        seed=seed,
        **({} if metric.is_accuracy else {"metric": metric}),
    )
    if inputs is not None:
        metrics.population = measure_populations(on_test, *apart, test.targets, inputs, test.populations, seed)
    if "generated" in groups:
        for name in (name for name in groups if name != "generated"):
            of_both = (scores["generated"], scores[name], counts["generated"], counts[name])
            metrics.comparisons[name] = Difference(**accuracy_difference(*of_both))
            metrics.selected_comparisons[name] = _compare_selected(on_test, selected, name, metric)
    for name in groups:
        if (other := find_group(name).counterpart) in groups:
            metrics.soup_comparisons[other] = Difference(**accuracy_difference(scores[name], scores[other]))
    metrics.finding, metrics.verdict = make_verdict(metrics)

    # 4. For the matrix of similarities
    if not metric.is_accuracy:
        return EvaluationResult(evaluations, metrics, None, {})
    shown = {name: _spread_rows(size) for name, size in sizes.items() if is_shown(name, "matrix")}
    mistakes = torch.cat([wrong[name][rows] for name, rows in shown.items()])
    iou_sizes = {name: len(rows) for name, rows in shown.items()}
    return EvaluationResult(evaluations, metrics, wrong_iou(mistakes, mistakes), iou_sizes)


def _evaluate_group(
    name: str,
    on_val: Mapping[str, NetworkScores],
    on_test: Mapping[str, NetworkScores],
    nearness: Nearness,
    independent: torch.Tensor | None,
    matched: torch.Tensor | None,
    counts: Mapping[str, float],
    selected: int,
) -> GroupEvaluation:
    scores, scores_original = on_test[name].scores, on_test["original"].scores
    return GroupEvaluation(
        val_score=on_val[name].score,
        test_score=on_test[name].score,
        **_of_predictions(on_test[name], on_test["original"], name == "original"),
        l2_nearest=nearness.distance,
        l2_independent=independent,
        cosine_nearest=nearness.cosine,
        l2_matched=matched,
        selected=selected,
        n_effective=counts[name],
        score_ci95=mean_interval(scores, counts[name]),
        difference_to_original=Difference(
            **accuracy_difference(scores, scores_original, counts[name], counts["original"])
        ),
    )


def _of_predictions(
    output: NetworkScores, originals: NetworkScores, is_original: bool
) -> dict[str, torch.Tensor | None]:
    """What is known of networks that predict classes, `None` of others."""
    if not isinstance(output, EvaluatorOutput):
        return dict.fromkeys(("test_nll", "test_ece", "iou_max", "iou_nearest"))
    iou = wrong_iou(output.wrong, originals.wrong)
    if is_original:
        iou.fill_diagonal_(-1)
    if iou.shape[1] == is_original:
        iou_max, nearest = torch.full((len(output),), math.nan), None
    else:
        iou_max, nearest = iou.max(1)
    return {"test_nll": output.nll, "test_ece": output.ece, "iou_max": iou_max, "iou_nearest": nearest}


def _compare_selected(
    on_test: Mapping[str, NetworkScores], selected: Mapping[str, int], name: str, metric: Metric
) -> SelectedDifference:
    """The selected generated network against that of another group."""
    both = ("generated", name)
    if not metric.is_accuracy:
        return SelectedDifference(**accuracy_difference(*(on_test[of].scores[selected[of]][None] for of in both)))
    found = paired_comparison(*(on_test[of].right[selected[of]] for of in both))
    return SelectedDifference(only_generated=found.pop("only_a"), only_other=found.pop("only_b"), **found)


def _select(output: NetworkScores, metric: Metric) -> int:
    worth = metric.worth(output.score)
    best = (worth == worth.max()).nonzero()[:, 0]
    return int(best[output.ties[best].argmin()])


def _best_single(on_val: Mapping[str, EvaluatorOutput], selected: Mapping[str, int]) -> str:
    """Of originals and generated networks, the group whose selected network has the best validation accuracy."""
    candidates = [name for name in ("original", "generated") if name in selected]
    return max(candidates, key=lambda name: (on_val[name].score[selected[name]], -on_val[name].ties[selected[name]]))


def _spread_rows(n: int) -> torch.Tensor:
    """Up to `MAX_IOU_NETWORKS` of `n` rows, evenly spread."""
    return torch.linspace(0, n - 1, min(n, MAX_IOU_NETWORKS)).round().long()
