import pytest
import torch

from pdiff_hf.evaluation.intervals import accuracy_difference, exact_interval, mean_interval


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


def test_difference_is_paired_over_images():
    right = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)) < 0.7
    same = accuracy_difference(right[:1], right[:1])
    assert same == {"difference": 0, "ci95": [0, 0]}
    better = right[:1].clone()
    better[0, (~right[0]).nonzero()[:20, 0]] = True
    comparison = accuracy_difference(better, right[:1])
    assert comparison["difference"] == pytest.approx(0.1)
    assert 0 < comparison["ci95"][0] < 0.1 < comparison["ci95"][1]
