"""The protocol: choose on validation examples, report on test examples, treat every group alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..results.metrics import SCHEMA, Metrics
from ..results.records import Difference, SelectedDifference
from .autocorrelation import RunMemory, independent_distance
from .ensembles import evaluate_ensembles
from .evaluator import ParameterEvaluator
from .groups import count_independent, find_group, is_shown
from .intervals import accuracy_difference, mean_interval, paired_comparison
from .matching import nearest_matched_distance
from .outputs import EvaluatorOutput
from .permutations import PermutationSpec
from .population import choose_inputs, measure_populations
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
    which group these are, in consecutive blocks.
    """

    groups: dict[str, GroupEvaluation]
    metrics: Metrics
    iou: torch.Tensor
    iou_sizes: dict[str, int]


def evaluate_groups(
    groups: Mapping[str, torch.Tensor],
    val: ParameterEvaluator,
    test: ParameterEvaluator,
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
    to the nearest other one, which on a trajectory is its neighbour. *Performant*: test accuracy not below the
    originals' mean.

    Args:
        groups (`Mapping[str, torch.Tensor]`): Networks `(n, D)` by group name; `original` is required.
        val, test ([`ParameterEvaluator`]): On the examples that networks are chosen on, and on those of all that is
            reported.
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
    on_val = {name: val.predict(vectors) for name, vectors in networks.items()}
    inputs = None
    if apart is not None:
        num_networks = sum(map(len, networks.values()))
        inputs = choose_inputs(len(test.labels), test.num_classes, num_networks, seed)
    on_test = {name: test.predict(vectors, keep=inputs) for name, vectors in networks.items()}
    scores = {name: output.scores for name, output in on_test.items()}
    right, wrong = ({name: getattr(output, key) for name, output in on_test.items()} for key in ("right", "wrong"))
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
    evaluations = {
        name: _evaluate_group(
            name, vectors, originals, on_val, on_test, memory, permutations if name in matched else None, counts
        )
        for name, vectors in groups.items()
    }
    summaries = {
        name: summarize_group(
            name,
            group,
            evaluations["original"],
            scores[name],
            on_test[name].losses,
            iou=wrong_iou(wrong[name], wrong[name]),
            spread=spreads[name],
            seconds=(seconds or {}).get(name),
        )
        for name, group in evaluations.items()
    }

    # 2. Groups against each other. Generated networks come first among the ensembles
    averaged = sorted((name for name in groups if is_shown(name, "ensembles")), key=lambda name: name != "generated")
    single = _best_single(networks, on_val)
    metrics = Metrics(
        version=SCHEMA,
        num_parameters=originals.shape[1],
        num_test=len(test.labels),
        groups=summaries,
        comparisons={},
        selected_comparisons={},
        soup_comparisons={},
        # Networks of several populations, which have other labels, are no ensemble.
        ensembles={}
        if test.populations
        else evaluate_ensembles({name: networks[name] for name in averaged}, test, best_single=single, seed=seed),
        seed=seed,
    )
    if apart is not None:
        metrics.population = measure_populations(on_test, *apart, test.targets, inputs, test.populations, seed)
    if "generated" in groups:
        best = right["generated"][evaluations["generated"].selected]
        for name in (name for name in groups if name != "generated"):
            found = paired_comparison(best, right[name][evaluations[name].selected])
            of_both = (scores["generated"], scores[name], counts["generated"], counts[name])
            metrics.comparisons[name] = Difference(**accuracy_difference(*of_both))
            metrics.selected_comparisons[name] = SelectedDifference(
                only_generated=found.pop("only_a"), only_other=found.pop("only_b"), **found
            )
    for name in groups:
        if (other := find_group(name).counterpart) in groups:
            metrics.soup_comparisons[other] = Difference(**accuracy_difference(scores[name], scores[other]))
    metrics.finding, metrics.verdict = make_verdict(metrics)

    # 3. For the matrix of similarities
    shown = {name: _spread_rows(len(groups[name])) for name in groups if is_shown(name, "matrix")}
    mistakes = torch.cat([wrong[name][rows] for name, rows in shown.items()])
    iou_sizes = {name: len(rows) for name, rows in shown.items()}
    return EvaluationResult(evaluations, metrics, wrong_iou(mistakes, mistakes), iou_sizes)


def _evaluate_group(
    name: str,
    vectors: torch.Tensor,
    originals: torch.Tensor,
    on_val: Mapping[str, EvaluatorOutput],
    on_test: Mapping[str, EvaluatorOutput],
    memory: RunMemory,
    permutations: PermutationSpec | None,
    counts: Mapping[str, float],
) -> GroupEvaluation:
    is_original = name == "original"
    iou = wrong_iou(on_test[name].wrong, on_test["original"].wrong)
    scores, scores_original = on_test[name].scores, on_test["original"].scores
    if is_original:
        iou.fill_diagonal_(-1)
    matched = None
    if permutations is not None:
        matched = nearest_matched_distance(vectors, originals, permutations, exclude_self=is_original)
    return GroupEvaluation(
        val_accuracy=on_val[name].accuracy,
        test_accuracy=on_test[name].accuracy,
        test_nll=on_test[name].nll,
        test_ece=on_test[name].ece,
        iou_max=iou.max(1).values if iou.shape[1] > is_original else torch.full((len(vectors),), math.nan),
        l2_nearest=nearest_distance(vectors, originals, exclude_self=is_original),
        l2_independent=independent_distance(vectors, memory) if is_original else None,
        cosine_nearest=nearest_cosine(vectors, originals, exclude_self=is_original),
        l2_matched=matched,
        selected=_select(on_val[name]),
        n_effective=counts[name],
        accuracy_ci95=mean_interval(scores, counts[name]),
        difference_to_original=Difference(
            **accuracy_difference(scores, scores_original, counts[name], counts["original"])
        ),
    )


def _select(output: EvaluatorOutput) -> int:
    best = (output.accuracy == output.accuracy.max()).nonzero()[:, 0]
    return int(best[output.nll[best].argmin()])


def _best_single(groups: Mapping[str, torch.Tensor], on_val: Mapping[str, EvaluatorOutput]) -> torch.Tensor:
    """The network `(D,)` with the best validation accuracy among originals and generated networks."""
    candidates = [(name, _select(on_val[name])) for name in ("original", "generated") if name in groups]
    name, row = max(candidates, key=lambda c: (on_val[c[0]].accuracy[c[1]], -on_val[c[0]].nll[c[1]]))
    return groups[name][row]


def _spread_rows(n: int) -> torch.Tensor:
    """Up to `MAX_IOU_NETWORKS` of `n` rows, evenly spread."""
    return torch.linspace(0, n - 1, min(n, MAX_IOU_NETWORKS)).round().long()
