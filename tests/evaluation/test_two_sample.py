import pytest
import torch

from pdiff_hf.evaluation.two_sample import function_tests, nearest_neighbour_accuracy


def compare(first, second, seed=0):
    distances = (torch.cdist(first, first), torch.cdist(first, second), torch.cdist(second, second))
    return function_tests(*distances, torch.Generator().manual_seed(seed))


def samples(seed, num=40, width=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num, width, generator=generator, dtype=torch.float64)


def test_samples_of_one_distribution_give_half_and_uniform_p():
    found = torch.tensor([compare(*samples(seed), seed) for seed in range(40)])
    # Of one seed the accuracy has a deviation of about 0.07.
    assert found[:, 0].mean() == pytest.approx(0.5, abs=0.04)
    for p_values in found[:, 1:].T:
        assert 0.35 < p_values.mean() < 0.65 and (p_values < 0.05).double().mean() <= 0.15
        assert p_values.min() < 0.3 and p_values.max() > 0.7


def test_another_mean_is_told():
    first, second = samples(0)
    accuracy, p, mmd_p = compare(first + 1.0, second)
    assert accuracy > 0.9 and p == mmd_p == pytest.approx(1 / 200)


def test_half_the_spread_is_told():
    first, second = samples(0)
    accuracy, p, _ = compare(0.5 * first, second)
    assert accuracy > 0.8 and p == pytest.approx(1 / 200)


def test_accuracy_by_hand():
    # Of the first half 0 and 1, of the second 10 and 14; each without the one in its place.
    places = torch.tensor([0.0, 1.0, 10.0, 14.0])
    distances = (places[:, None] - places).abs()[None]
    # Ratios of distance to the nearest of the second over that to the first: 14, 9, 4 / 9, 4 / 14.
    assert nearest_neighbour_accuracy(distances.log()).item() == 1
    # In the order 0, 10, 1, 14 they are 14 / 10, 9 / 10, 13 / 9, 13 / 14 of halves (0, 10) and (1, 14).
    order = torch.tensor([0, 2, 1, 3])
    assert nearest_neighbour_accuracy(distances[:, order][:, :, order].log()).item() == 0.25


def test_what_is_not_finite_is_not_tested():
    first, second = samples(0)
    first[0, 0] = torch.inf
    assert compare(first, second) == (None, None, None)
