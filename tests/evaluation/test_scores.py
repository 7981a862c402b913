import random

import numpy as np
import pytest
import torch
from torch import nn

from pdiff_hf.evaluation.choice import choose_networks
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.groups import build_groups
from pdiff_hf.evaluation.scores import ScoreEvaluator
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.results.metric import Metric

NETWORK = nn.Linear(3, 1, bias=False)
LAYOUT = ParameterLayout.from_model(NETWORK, "all")
ERROR, GAIN = Metric(name="error", higher_is_better=False), Metric(name="gain")


def size(network):
    """Three scores: the squares of the weights."""
    return network.weight[0].square()


def evaluator(function=size, metric=ERROR, **options):
    return ScoreEvaluator(function, NETWORK, LAYOUT, metric, "a function", **options)


def make_vectors(num=8, seed=0, scale=1.0):
    return scale * torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("give", [lambda s: s, lambda s: s.tolist(), lambda s: s.detach().numpy()])
def test_scores_of_examples_are_taken_as_tensors_lists_and_arrays(give):
    vectors = make_vectors()
    found = evaluator(lambda network: give(size(network))).predict(vectors)
    torch.testing.assert_close(found.scores, vectors.double().square())
    torch.testing.assert_close(found.score, vectors.double().square().mean(1))


@pytest.mark.parametrize("give", [lambda s: s.sum(), lambda s: s.sum().item(), lambda s: np.float32(s.sum().item())])
def test_a_number_is_the_only_score(give):
    judge = evaluator(lambda network: give(size(network)))
    assert judge.num_examples == 1
    torch.testing.assert_close(judge.score(make_vectors()), make_vectors().double().square().sum(1))


def test_what_a_function_does_to_a_network_is_forgotten():
    def spoil(network):
        assert not network.training
        score = size(network).sum().item()
        network.train()
        nn.init.zeros_(network.weight)
        return score

    judge, before = evaluator(spoil), NETWORK.weight.clone()
    assert torch.equal(judge.score(make_vectors()), judge.score(make_vectors()))
    assert torch.equal(NETWORK.weight, before)


def test_every_network_meets_the_same_random_numbers_and_nobody_elses_are_used_up():
    def drawn(network):
        return [torch.rand(()).item(), np.random.rand(), random.random()]

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    scores = evaluator(drawn).predict(make_vectors()).scores
    assert (scores == scores[0]).all() and len(scores[0].unique()) == 3
    assert (torch.rand(()), np.random.rand(), random.random()) == expected


def test_gradients_can_be_part_of_a_score():
    def slope(network):
        x = torch.ones(1, 3, requires_grad=True)
        network(x).sum().backward()
        return x.grad.sum().item()

    with torch.no_grad():
        torch.testing.assert_close(evaluator(slope).score(make_vectors()), make_vectors().sum(1).double())


def test_networks_that_are_not_finite_are_never_chosen():
    vectors = make_vectors(20)
    vectors[3, 0], vectors[4] = torch.nan, torch.inf
    chosen = choose_networks(evaluator(), vectors, top=2)
    worth = vectors.square().sum(1).nan_to_num(torch.inf)
    assert chosen.rows.tolist() == worth.argsort()[:2].tolist() and chosen.num_dropped == 2
    torch.testing.assert_close(chosen.score, worth[chosen.rows].double() / 3)
    most = choose_networks(evaluator(metric=GAIN), vectors, top=1)
    assert most.rows.item() == vectors.square().sum(1).where(vectors.isfinite().all(1), -1).argmax()


def judged(metric, originals, generated):
    judge = evaluator(metric=metric)
    groups, _ = build_groups(originals, generated, LAYOUT, val_worth=judge.worth)
    return evaluate_groups(groups, judge, judge)


@pytest.mark.parametrize(("metric", "finding"), [(ERROR, "better"), (GAIN, "worse")])
def test_the_verdict_follows_the_direction_of_the_metric(metric, finding):
    # Averages of originals are near the offset, 2, and generated networks near 0.
    originals, generated = 2 + make_vectors(30, 0, 0.1), make_vectors(30, 1, 0.1)
    result = judged(metric, originals, generated)
    metrics = result.metrics
    assert metrics.finding == finding
    assert metrics.generated.difference_to_original.difference == pytest.approx(-4, abs=0.2)
    share = metrics.generated.novel_and_performant.performant
    assert share == (1 if metric is ERROR else 0)
    assert "in error" in metrics.verdict or "in gain" in metrics.verdict
    assert "points" not in metrics.verdict and result.iou is None and metrics.ensembles == {}
    soups = {"original": metrics.groups["greedy_soup"], "generated": metrics.groups["generated_greedy_soup"]}
    for name, soup in soups.items():
        best = (min if metric is ERROR else max)(result.groups[name].test_score.tolist())
        assert metric.worth(soup.score.mean) >= metric.worth(best)


def test_the_selected_network_is_the_best_in_the_direction_of_the_metric():
    originals, generated = make_vectors(30, 0), make_vectors(30, 1)
    scores = generated.square().mean(1)
    for metric, best in ((ERROR, scores.argmin()), (GAIN, scores.argmax())):
        chosen = judged(metric, originals, generated).metrics.generated.selected
        assert chosen.index == best and chosen.test_score == pytest.approx(scores[best].item())
        assert chosen.test_ci95[0] <= chosen.test_score <= chosen.test_ci95[1]


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda network: None, r"a function: expected a number or scores \(N,\) of a network, found NoneType"),
        (lambda network: torch.zeros(2, 1), r"a function: .* found the shape \(2, 1\)"),
        (lambda network: torch.zeros(0), r"a function: .* found the shape \(0,\)"),
        (lambda network: [1.0, float("inf")], "a function: expected finite scores of a network, found inf"),
        (lambda network: 1 / 0, r"a function: ZeroDivisionError: division by zero \(test_scores.py, line \d+\)"),
    ],
)
def test_what_is_no_score_is_named(give, message):
    with pytest.raises(ValueError, match=message):
        evaluator(give)
