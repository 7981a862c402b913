import pytest
import torch
from scipy.stats import binomtest

from pdiff_hf.evaluation.intervals import (
    accuracy_difference,
    exact_interval,
    mean_interval,
    paired_comparison,
    sample_mean_interval,
)


def test_exact_interval_is_clopper_pearson():
    # No success in 10: the upper bound solves (1 - p)^10 = 0.025.
    assert exact_interval(0, 10) == pytest.approx([0, 1 - 0.025**0.1])
    assert exact_interval(10, 10) == pytest.approx([0.025**0.1, 1])


def test_interval_of_a_mean_covers_the_truth_in_95_of_100_cases():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        # Networks and images both vary; images vary in difficulty in common to all networks.
        difficulty = torch.rand(60, generator=generator)
        skill = 0.05 * torch.randn(30, 1, generator=generator)
        right = torch.rand(30, 60, generator=generator) < (0.2 + 0.6 * difficulty + skill)
        low, high = mean_interval(right)
        hits += low <= 0.5 <= high
    # Three standard errors of 400 draws below 0.95; above it the interval is conservative.
    assert 0.917 <= hits / 400 <= 0.99


def test_shares_need_not_be_of_a_whole_number():
    low, high = exact_interval(1.5, 4.5)
    assert exact_interval(4 / 3, 4)[1] > high > exact_interval(5 / 3, 5)[1]
    assert exact_interval(2, 10) == pytest.approx(binomtest(2, 10).proportion_ci(method="exact"))
    assert exact_interval(0, 4.5) == pytest.approx([0, 1 - 0.025 ** (1 / 4.5)])
    assert 0 < low < 1.5 / 4.5


@pytest.mark.parametrize("interval", [mean_interval, sample_mean_interval])
def test_interval_of_networks_that_depend_on_each_other_counts_the_independent_ones(interval):
    generator = torch.Generator().manual_seed(0)
    hits, naive = 0, 0
    for _ in range(400):
        # Five independent levels, each of which eight networks share; difficulties do not matter here.
        skill = torch.randn(5, generator=generator, dtype=torch.float64).repeat_interleave(8)
        values = skill if interval is sample_mean_interval else skill[:, None].expand(-1, 3)
        low, high = interval(values, 5)
        hits += low <= 0 <= high
        low, high = interval(values)
        naive += low <= 0 <= high
    # Three standard errors of 400 draws around 0.95.
    assert 0.917 <= hits / 400 <= 0.983
    assert naive / 400 < 0.7


def test_difference_counts_the_independent_networks_of_both():
    right = torch.rand(40, 200, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.5, 0.9, 40)[:, None]
    widths = []
    for counts in ((), (4, None), (4, 4)):
        found = accuracy_difference(right, right.flip(1), *counts)
        widths.append(found["ci95"][1] - found["ci95"][0])
    assert widths[0] < widths[1] < widths[2]


def test_difference_is_paired_over_images():
    right = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)) < 0.7
    same = accuracy_difference(right[:1], right[:1])
    assert same == {"difference": 0, "ci95": [0, 0]}
    better = right[:1].clone()
    better[0, (~right[0]).nonzero()[:20, 0]] = True
    comparison = accuracy_difference(better, right[:1])
    assert comparison["difference"] == pytest.approx(0.1)
    assert 0 < comparison["ci95"][0] < 0.1 < comparison["ci95"][1]


def test_paired_comparison_is_mcnemars_exact_test():
    right = torch.zeros(100, dtype=torch.bool)
    a, b = right.clone(), right.clone()
    a[:50] = b[:50] = True
    a[50:54] = True
    # Four images against none: 2 * 0.5^4, and an interval that agrees that this is not enough.
    found = paired_comparison(a, b)
    assert found == {
        "difference": 0.04,
        "ci95": pytest.approx([0.04 * (2 * 0.025**0.25 - 1), 0.04]),
        "p_value": pytest.approx(0.125),
        "only_a": 4,
        "only_b": 0,
    }
    assert found["ci95"][0] < 0
    b[60:75] = True
    other = paired_comparison(a, b)
    assert other["difference"] == pytest.approx(-0.11) and other["ci95"][1] < 0 and other["p_value"] < 0.05
    assert paired_comparison(a, a) == {"difference": 0, "ci95": [0, 0], "p_value": 1, "only_a": 0, "only_b": 0}


def test_interval_of_a_small_sample_is_students():
    # The textbook's 2.776 for four degrees of freedom.
    low, high = sample_mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (low, high) == pytest.approx((3 - 2.776 * 2.5**0.5 / 5**0.5, 3 + 2.776 * 2.5**0.5 / 5**0.5), abs=1e-3)
    assert sample_mean_interval(torch.tensor([1.0])) is None
    assert sample_mean_interval(torch.tensor([1.0, float("nan")])) is None
