"""What is made of weights and conditions, without a generator."""

from types import SimpleNamespace

import pytest
import torch

from pdiff_hf.evaluation.unseen_tasks.networks import TaskNetworks, task_pairs
from pdiff_hf.evaluation.unseen_tasks.regressions import features, kernel_ridge, nearest_seen, residual_draws, ridge
from pdiff_hf.evaluation.unseen_tasks.weights import mean_of_nearest, task_arithmetic, weighted_means
from pdiff_hf.training.perceptron import fit_perceptrons


def all_subsets(num=6):
    numbers = torch.arange(1, 2**num - 1)
    return (numbers[:, None] >> torch.arange(num) & 1).float()


@pytest.mark.parametrize("pairs", [False, True])
def test_ridge_finds_what_is_linear_in_its_features(pairs):
    torch.manual_seed(0)
    conditions = all_subsets()[torch.randperm(62)]
    targets = (features(conditions, True) @ torch.randn(22, 3, dtype=torch.float64)).float()
    predict = ridge(conditions[:50], targets[:50], 1e-9, pairs)
    error = (predict(conditions[50:]) - targets[50:]).abs().max()
    assert error < 1e-4 if pairs else error > 0.5


def test_kernel_ridge_goes_through_the_seen_and_to_their_mean_far_away():
    torch.manual_seed(0)
    conditions, targets = all_subsets(), torch.randn(62, 3)
    predict = kernel_ridge(conditions, targets, 1e-9, 1.0)
    torch.testing.assert_close(predict(conditions), targets, atol=1e-4, rtol=0)
    torch.testing.assert_close(predict(100 + conditions[:1]), targets.mean(0, keepdim=True))


def test_draws_around_a_regression_have_the_spread_of_what_it_misses():
    torch.manual_seed(0)
    conditions = all_subsets()
    missed = torch.randn(62, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.2]])
    predict = ridge(conditions, 3 * conditions[:, :2] + missed, 1e-3, False)
    drawn = residual_draws(predict, conditions, 3 * conditions[:, :2] + missed, conditions[:1].expand(4000, -1), 0)
    torch.testing.assert_close(drawn.mean(0), predict(conditions[:1])[0], atol=0.05, rtol=0)
    residuals = 3 * conditions[:, :2] + missed - predict(conditions)
    torch.testing.assert_close(drawn.T.cov(), residuals.T.cov(correction=0), atol=0.06, rtol=0.05)


def test_the_nearest_seen_tasks_are_those_with_the_fewest_other_classes():
    seen = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    near, other = nearest_seen(seen, torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1]]))
    assert near.tolist() == [0, 2] and other.tolist() == [1]


def test_a_task_and_its_complement_are_one_pair():
    assert task_pairs(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 1]])).tolist() == [0, 1, 0]


def linear_networks(conditions):
    """Networks whose weights are sums of a vector for every class."""
    directions = torch.randn(conditions.shape[1], 4, generator=torch.Generator().manual_seed(0))
    vectors, rows = conditions @ directions, torch.arange(len(conditions))
    evaluator = SimpleNamespace()
    return TaskNetworks(vectors, conditions, rows, [""] * len(rows), evaluator, torch.zeros(len(rows))), directions


def test_task_arithmetic_adds_up_class_vectors():
    conditions = all_subsets()
    seen, directions = linear_networks(conditions)
    wanted = torch.tensor([[1.0, 0, 1, 0, 0, 1]])
    made = [make(wanted) for make in task_arithmetic(seen)]
    # Over all subsets classes are almost independent: the vectors of all of them are those that were added up.
    assert min((own - wanted @ directions).norm() for own in made) < 0.1 * (wanted @ directions).norm()


def test_means_of_neighbours_weigh_the_nearest_most():
    seen, _ = linear_networks(torch.tensor([[1.0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]))
    wanted = torch.tensor([[1.0, 1, 0, 0, 0, 0]])
    torch.testing.assert_close(mean_of_nearest(seen)(wanted)[0], seen.vectors[0])
    sharp, *_, blunt = (make(wanted)[0] for make in weighted_means(seen))
    torch.testing.assert_close(sharp, seen.vectors[0], atol=0.1, rtol=0)
    assert (blunt - seen.vectors.mean(0)).norm() < (sharp - seen.vectors.mean(0)).norm()


def test_a_perceptron_learns_what_is_not_linear():
    conditions = all_subsets()
    targets = (conditions[:, :1] != conditions[:, 1:2]).float() * 5 + 1
    first = next(iter(fit_perceptrons(conditions, targets, steps=300)))
    assert (first(conditions) - targets).abs().max() < 0.3
    assert torch.equal(first(conditions), next(iter(fit_perceptrons(conditions, targets, steps=300)))(conditions))
