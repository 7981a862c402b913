"""The protocol: choose on validation examples, report on test examples, treat every group alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..results.metric import Metric
from ..results.metrics import SCHEMA, Metrics
from ..results.records import Difference, SelectedDifference
from .autocorrelation import RunMemory, independent_distance
from .ensembles import evaluate_ensembles
from .groups import count_independent, find_group, is_shown
from .intervals import accuracy_difference, mean_interval, paired_comparison
from .matching import nearest_matched_distance
from .outputs import EvaluatorOutput
from .permutations import PermutationSpec
from .population import choose_inputs, measure_populations
from .scores import NetworkEvaluator, NetworkScores
from .similarity import nearest_cosine, nearest_distance, spread, wrong_iou
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
    groups: Mapping[str, torch.Tensor],
    val: NetworkEvaluator,
    test: NetworkEvaluator,
    *,
    memory: RunMemory | None = None,
    permutations: PermutationSpec | None = None,
    seconds: Mapping[str, float] | None = None,
    networks: Mapping[str, torch.Tensor] | None = None,
    n_effective: Mapping[str, float] | None = None,
    apart: tuple[torch.Tensor, torch.Tensor] | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Evaluate groups of networks under one protocol.

    *Novel*: L2 distance to the nearest original above the yardstick, the mean distance of an original to the nearest
    independent one (and 2 and 4 times that). *Copied*: that distance below a third of the mean distance of an original
    to the nearest other one, which on a trajectory is its neighbour. *Performant*: test accuracy, or another score,
    not worse than the originals' mean.

    What is made of predictions, such as IoU, calibration, ensembles and populations, is left out where networks are
    judged by another metric than accuracy.

    Args:
        groups (`Mapping[str, torch.Tensor]`): Networks `(n, D)` by group name; `original` is required.
        val, test ([`NetworkEvaluator`]): On the examples that networks are chosen on, and on those of all that is
            reported; one and the same where nobody tells these apart.
        memory ([`RunMemory`], *optional*): Which originals are independent of which; all by default.
        permutations ([`PermutationSpec`], *optional*): Of [`find_permutations`]; then distances to the nearest
            original after permutation matching are reported too.
        seconds (`Mapping[str, float]`, *optional*): What making the networks of a group took.
        networks (`Mapping[str, torch.Tensor]`, *optional*): The same networks `(n, E)` in the evaluators' layout,
            where it has more tensors than count for distances; `groups` by default.
        n_effective (`Mapping[str, float]`, *optional*): How many independent networks those of other groups count as
            in intervals over networks; see [`count_independent`] for what is not given.
        apart (`tuple[torch.Tensor, torch.Tensor]`, *optional*): Rows of `original` that were seen and that were held
            out, of [`unseen_runs`]: then all groups are compared with the latter as populations.
        seed (`int`, *optional*, defaults to 0): Of the ensembles' draws and of the bootstrap.

    Raises:
        ValueError: no group `original`, or a group that does not fit the layout.
    """
    if "original" not in groups:
        raise ValueError(f"expected a group 'original' to compare with, found {sorted(groups)}")
    networks = groups if networks is None else networks
    metric = test.metric
    on_val = {name: val.predict(vectors) for name, vectors in networks.items()}
    inputs, options = None, {}
    if apart is not None and metric.is_accuracy:
        num_networks = sum(map(len, networks.values()))
        inputs = choose_inputs(test.num_examples, test.num_classes, num_networks, seed)
        options = {"keep": inputs}
    on_test = on_val
    if test is not val or inputs is not None:
        on_test = {name: test.predict(vectors, **options) for name, vectors in networks.items()}
    scores = {name: output.scores for name, output in on_test.items()}
    wrong = {name: output.wrong for name, output in on_test.items()} if metric.is_accuracy else {}
    originals = groups["original"]
    memory = RunMemory.independent(len(originals)) if memory is None else memory
    if len(memory) != len(originals):
        raise ValueError(f"expected the memory of {len(originals)} originals, found that of {len(memory)} rows.")

    # 1. Numbers of every network, and what they come to. Of independent networks matching takes long, and as functions
    # all are compared anyway
    matched = groups if apart is None else MATCHED_GROUPS
    spreads = {name: spread(vectors, originals) for name, vectors in groups.items()}
    known = {"original": memory.count_independent(), **(n_effective or {})}
    counts = count_independent({name: len(vectors) for name, vectors in groups.items()}, spreads, known)
    selected = {name: _select(output, metric) for name, output in on_val.items()}
    evaluations = {
        name: _evaluate_group(
            name,
            vectors,
            originals,
            on_val,
            on_test,
            memory,
            permutations if name in matched else None,
            counts,
            selected[name],
        )
        for name, vectors in groups.items()
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
            spread=spreads[name],
            seconds=(seconds or {}).get(name),
        )
        for name, group in evaluations.items()
    }

    # 2. Groups against each other. Generated networks come first among the ensembles
    ensembles = {}
    # Networks of several populations, which have other labels, are no ensemble.
    if metric.is_accuracy and not test.populations:
        shown = (name for name in groups if is_shown(name, "ensembles"))
        averaged = {name: networks[name] for name in sorted(shown, key=lambda name: name != "generated")}
        best = _best_single(on_val, selected)
        ensembles = evaluate_ensembles(averaged, test, best_single=networks[best][selected[best]], seed=seed)
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

    # 3. For the matrix of similarities
    if not metric.is_accuracy:
        return EvaluationResult(evaluations, metrics, None, {})
    shown = {name: _spread_rows(len(groups[name])) for name in groups if is_shown(name, "matrix")}
    mistakes = torch.cat([wrong[name][rows] for name, rows in shown.items()])
    iou_sizes = {name: len(rows) for name, rows in shown.items()}
    return EvaluationResult(evaluations, metrics, wrong_iou(mistakes, mistakes), iou_sizes)


def _evaluate_group(
    name: str,
    vectors: torch.Tensor,
    originals: torch.Tensor,
    on_val: Mapping[str, NetworkScores],
    on_test: Mapping[str, NetworkScores],
    memory: RunMemory,
    permutations: PermutationSpec | None,
    counts: Mapping[str, float],
    selected: int,
) -> GroupEvaluation:
    is_original = name == "original"
    scores, scores_original = on_test[name].scores, on_test["original"].scores
    matched = None
    if permutations is not None:
        matched = nearest_matched_distance(vectors, originals, permutations, exclude_self=is_original)
    return GroupEvaluation(
        val_score=on_val[name].score,
        test_score=on_test[name].score,
        **_of_predictions(on_test[name], on_test["original"], is_original),
        l2_nearest=nearest_distance(vectors, originals, exclude_self=is_original),
        l2_independent=independent_distance(vectors, memory) if is_original else None,
        cosine_nearest=nearest_cosine(vectors, originals, exclude_self=is_original),
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
        return dict.fromkeys(("test_nll", "test_ece", "iou_max"))
    iou = wrong_iou(output.wrong, originals.wrong)
    if is_original:
        iou.fill_diagonal_(-1)
    iou_max = iou.max(1).values if iou.shape[1] > is_original else torch.full((len(output),), math.nan)
    return {"test_nll": output.nll, "test_ece": output.ece, "iou_max": iou_max}


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
