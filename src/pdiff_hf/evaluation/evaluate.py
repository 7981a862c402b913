"""The protocol: choose on validation images, report on test images, treat every group alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..layout import ParameterLayout
from .evaluator import EvaluatorOutput, ParameterEvaluator
from .intervals import accuracy_difference, exact_interval, mean_accuracy_interval
from .similarity import nearest_distance, wrong_iou
from .verdict import make_verdict

# A network is novel at m x when it is farther from its nearest original than m times what is usual among originals.
NOVELTY_MULTIPLES = (1, 2, 4)


@dataclass
class GroupEvaluation:
    """What is known of the `n` networks of a group.

    Args:
        val_accuracy, test_accuracy, test_nll, test_ece (`torch.Tensor` of shape `(n,)`): Metrics per network.
        iou_max (`torch.Tensor` of shape `(n,)`): IoU of wrong predictions with the most similar original.
        l2_nearest (`torch.Tensor` of shape `(n,)`): Euclidean distance to the nearest original.
        selected (`int`): The network with the best validation accuracy (ties: the lowest validation NLL).
        accuracy_ci95 (`list[float]`): 95 % interval of the mean test accuracy.
        difference_to_original (`dict`): Mean test accuracy minus that of the originals, with `ci95`.

    For originals, similarity is to the other originals (leave-one-out).
    """

    val_accuracy: torch.Tensor
    test_accuracy: torch.Tensor
    test_nll: torch.Tensor
    test_ece: torch.Tensor
    iou_max: torch.Tensor
    l2_nearest: torch.Tensor
    selected: int
    accuracy_ci95: list[float]
    difference_to_original: dict[str, float | list[float]]


@dataclass
class EvaluationResult:
    """Groups with their numbers per network, and `metrics`, the JSON-able summary that goes into `metrics.json`."""

    groups: dict[str, GroupEvaluation]
    metrics: dict


def evaluate_groups(
    groups: dict[str, torch.Tensor],
    model: nn.Module,
    layout: ParameterLayout,
    *,
    val: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    batch_size: int = 500,
    device: torch.device | str | None = None,
    max_cache_bytes: int = 2 * 2**30,
) -> EvaluationResult:
    """Evaluate groups of networks under one protocol.

    *Novel*: L2 distance to the nearest original above the yardstick, the mean leave-one-out nearest distance of the
    originals (and 2 and 4 times that). *Performant*: test accuracy not below the originals' mean.

    Args:
        groups (`dict[str, torch.Tensor]`): Networks `(n, D)` by group name; `original` is required.
        model (`nn.Module`): The base model.
        layout ([`ParameterLayout`]): Which tensors the vectors hold.
        val (`tuple[torch.Tensor, torch.Tensor]`): Images `(N, C, H, W)` and labels `(N,)` to choose networks on.
        test (`tuple[torch.Tensor, torch.Tensor]`): Images and labels for everything that is reported.
        batch_size (`int`, *optional*, defaults to 500): Images per forward pass.
        device (`torch.device` or `str`, *optional*): Where to compute; where the model is by default.
        max_cache_bytes (`int`, *optional*, defaults to 2 GiB): Memory for kept activations.

    Returns:
        [`EvaluationResult`]: `metrics` has `schema`, `num_parameters`, `num_test`, `groups`, `comparisons`, `verdict`.

    Raises:
        ValueError: no group `original`, or a group that does not fit the layout.
    """
    if "original" not in groups:
        raise ValueError(f"expected a group 'original' to compare with, found {sorted(groups)}")
    options = {"batch_size": batch_size, "device": device, "max_cache_bytes": max_cache_bytes}
    evaluator = ParameterEvaluator(model, layout, *val, **options)
    on_val = {name: evaluator.predict(vectors) for name, vectors in groups.items()}
    # Two evaluators at once would keep two sets of activations.
    del evaluator
    evaluator = ParameterEvaluator(model, layout, *test, **options)
    on_test = {name: evaluator.predict(vectors) for name, vectors in groups.items()}

    labels = test[1].cpu()
    right = {name: output.predictions == labels for name, output in on_test.items()}
    evaluations: dict[str, GroupEvaluation] = {}
    summaries: dict[str, dict] = {}
    originals = groups["original"]
    for name, vectors in groups.items():
        output = on_test[name]
        is_original = name == "original"
        iou = wrong_iou(output.predictions, on_test["original"].predictions, labels)
        if is_original:
            iou.fill_diagonal_(-1)
        evaluations[name] = GroupEvaluation(
            val_accuracy=on_val[name].accuracy,
            test_accuracy=output.accuracy,
            test_nll=output.nll,
            test_ece=output.ece,
            iou_max=iou.max(1).values if iou.shape[1] > is_original else torch.full((len(vectors),), math.nan),
            l2_nearest=nearest_distance(vectors, originals, exclude_self=is_original),
            selected=_select(on_val[name]),
            accuracy_ci95=mean_accuracy_interval(right[name]),
            difference_to_original=accuracy_difference(right[name], right["original"]),
        )
    mean_original = evaluations["original"].test_accuracy.double().mean()
    yardstick = evaluations["original"].l2_nearest.double().mean()
    for name, group in evaluations.items():
        performant = group.test_accuracy.double() >= mean_original
        novel = {multiple: group.l2_nearest.double() > multiple * yardstick for multiple in NOVELTY_MULTIPLES}
        pairwise = wrong_iou(on_test[name].predictions, on_test[name].predictions, labels).double()
        n = len(pairwise)
        summaries[name] = {
            "n": n,
            "test_accuracy": {**_summary(group.test_accuracy), "ci95": group.accuracy_ci95},
            "difference_to_original": group.difference_to_original,
            "test_nll": _summary(group.test_nll),
            "test_ece": _summary(group.test_ece),
            "selected": {
                "index": group.selected,
                "val_accuracy": group.val_accuracy[group.selected].item(),
                "test_accuracy": group.test_accuracy[group.selected].item(),
                "test_ci95": exact_interval(int(right[name][group.selected].sum()), len(labels)),
            },
            "similarity": {
                "iou_mean": _finite((pairwise.sum() - pairwise.trace()) / (n * (n - 1))) if n > 1 else None,
                "iou_max_mean": _finite(group.iou_max.double().mean()),
                "l2_nearest_mean": _finite(group.l2_nearest.double().mean()),
                "l2_nearest_min": _finite(group.l2_nearest.min()),
            },
            "novel_and_performant": {
                "performant": performant.double().mean().item(),
                "novel": {f"{m}x": novel[m].double().mean().item() for m in NOVELTY_MULTIPLES},
                "joint": {f"{m}x": (novel[m] & performant).double().mean().item() for m in NOVELTY_MULTIPLES},
            },
        }
    metrics = {
        "schema": 1,
        "num_parameters": layout.num_parameters,
        "num_test": len(labels),
        "groups": summaries,
        "comparisons": {
            name: accuracy_difference(right["generated"], right[name])
            for name in right
            if "generated" in right and name != "generated"
        },
    }
    metrics["verdict"] = make_verdict(metrics)
    return EvaluationResult(evaluations, metrics)


def _select(output: EvaluatorOutput) -> int:
    best = (output.accuracy == output.accuracy.max()).nonzero()[:, 0]
    return int(best[output.nll[best].argmin()])


def _finite(value: torch.Tensor) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value.item() if value.isfinite() else None


def _summary(values: torch.Tensor) -> dict[str, float | None]:
    values = values.double()
    statistics = {"mean": values.mean(), "std": values.std(correction=0), "min": values.min(), "max": values.max()}
    return {name: _finite(value) for name, value in statistics.items()}
