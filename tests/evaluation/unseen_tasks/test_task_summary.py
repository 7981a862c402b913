"""Means, intervals and verdict of networks for unseen tasks, and what they have different from each other."""

import pytest
import torch

from pdiff_hf.evaluation.unseen_tasks.diversity import disagreement, ensemble_accuracies
from pdiff_hf.evaluation.unseen_tasks.summary import average_seeds, summarize
from pdiff_hf.evaluation.unseen_tasks.verdict import tasks_verdict
from pdiff_hf.results.tasks import TaskGroup, TaskResults

PAIRS = [0, 0, 1, 1, 2, 2]


def results(generated, **others):
    known = {"oracle": [0.9] * 6, "majority": [0.5, 0.5, 0.6, 0.6, 0.7, 0.7], "generated": generated, **others}
    roles = {"nearest": "weights", "ridge_latents": "latents", "generated": "generator"}
    groups = {
        name: TaskGroup(accuracies=values, role=roles.get(name, "reference"), description=name)
        for name, values in known.items()
    }
    return TaskResults(num_unseen=6, draws=8, names=list("abcdef"), pairs=PAIRS, unseen=groups)


def test_means_are_over_groups_of_a_subset_and_its_complement():
    found = summarize(results([0.8, 0.9, 0.8, 0.8, 0.9, 0.9])).unseen
    generated = found["generated"]
    assert generated.accuracy == pytest.approx(0.85) and generated.worst == 0.8
    # Student's t of 0.85, 0.8 and 0.9 with two degrees of freedom, not of six tasks.
    half = 4.302653 * 0.05 / 3**0.5
    assert generated.ci95 == pytest.approx([0.85 - half, 0.85 + half])
    assert generated.recovered == pytest.approx((0.85 - 0.6) / (0.9 - 0.6))
    assert found["oracle"].recovered == pytest.approx(1) and found["majority"].recovered == pytest.approx(0)
    assert found["oracle"].difference == pytest.approx(-0.05)
    assert generated.difference is None


def test_seeds_are_averaged_task_by_task():
    together = average_seeds([summarize(results([0.8] * 6)), summarize(results([0.9] * 6))])
    generated = together.unseen["generated"]
    assert generated.accuracies == pytest.approx([0.85] * 6) and generated.per_seed == pytest.approx([0.8, 0.9])
    other = results([0.8] * 6)
    other.names = list("abcdeg")
    with pytest.raises(ValueError, match="same unseen tasks"):
        average_seeds([results([0.8] * 6), other])


@pytest.mark.parametrize(
    ("nearest", "ridge", "finding", "words"),
    [
        (0.95, 0.5, "unseen_worse", "no better than what is made of seen weights"),
        (0.7, 0.9, "unseen_no_gain", "the space and not the diffusion"),
        (0.7, 0.8, "unseen_better", "in the same latents"),
    ],
)
def test_a_verdict_says_what_is_as_good(nearest, ridge, finding, words):
    wobble = torch.tensor([0.0, 0.0, 0.001, 0.001, -0.001, -0.001])
    others = {"nearest": (nearest + wobble).tolist(), "ridge_latents": (ridge + wobble).tolist()}
    found = tasks_verdict(summarize(results([0.9, 0.9, 0.89, 0.89, 0.91, 0.91], **others)))
    assert found[0] == finding and words in found[1] and "\n" not in found[1]


def test_disagreement_is_the_mean_over_pairs_of_networks():
    predictions = torch.tensor([[[0, 1, 1], [0, 1, 0], [1, 1, 0]]])
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum((predictions[0, a] != predictions[0, b]).double().mean().item() for a, b in pairs) / 3
    assert disagreement(predictions, 2) == pytest.approx(expected)


def test_an_ensemble_averages_probabilities():
    # One is sure of 1, two lean to 0.
    logits = torch.tensor([[[[0.0, 9.0]], [[0.2, 0.0]], [[0.2, 0.0]]]])
    assert ensemble_accuracies(logits, torch.tensor([[1]])).tolist() == [1.0]
    assert ensemble_accuracies(logits, torch.tensor([[0]])).tolist() == [0.0]
