"""`metrics.json`: the numbers of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

INTERVALS = (
    "Intervals are 95 %: of a mean, over test images and networks; of one network, exact (Clopper-Pearson); of a "
    "share, exact, over networks; of similarities and ECE, Student's t over networks. Differences are paired on the "
    "same test images, so they are surer than two separate intervals suggest."
)

SEED_INTERVALS = (
    "Every number is the mean over the seeds, every interval the 95 % interval of this mean by Student's t over the "
    "seeds, so it is wide for few seeds."
)

TRAJECTORY_FILE = "trajectory.json"

AVERAGES = {
    "average_16": "averages of 16 originals",
    "uniform_soup": "the uniform soup of all originals",
    "greedy_soup": "the greedy soup of originals",
}


@dataclass
class GroupEvaluation:
    """What is known of the `n` networks of a group.

    Args:
        val_accuracy, test_accuracy, test_nll, test_ece (`torch.Tensor` of shape `(n,)`): Metrics per network.
        iou_max (`torch.Tensor` of shape `(n,)`): IoU of wrong predictions with the most similar original.
        l2_nearest (`torch.Tensor` of shape `(n,)`): Euclidean distance to the nearest original.
        cosine_nearest (`torch.Tensor` of shape `(n,)`): Largest cosine similarity to an original.
        l2_matched (`torch.Tensor` of shape `(n,)`, *optional*): `l2_nearest` after permutation matching.
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
    cosine_nearest: torch.Tensor
    l2_matched: torch.Tensor | None
    selected: int
    accuracy_ci95: list[float]
    difference_to_original: dict[str, float | list[float]]


@dataclass
class EvaluationResult:
    """What [`evaluate_groups`] finds.

    Args:
        groups (`dict[str, GroupEvaluation]`): Numbers per network, by group name.
        metrics (`dict`): The JSON-able summary that goes into `metrics.json`, described in `docs/metrics.md`.
        iou (`torch.Tensor` of shape `(m, m)`): IoU of wrong predictions between some networks of some groups.
        iou_sizes (`dict[str, int]`): How many networks of which group these are, in consecutive blocks.
    """

    groups: dict[str, GroupEvaluation]
    metrics: dict
    iou: torch.Tensor
    iou_sizes: dict[str, int]
