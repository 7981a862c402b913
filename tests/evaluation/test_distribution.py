import math

import pytest
import torch

from pdiff_hf.evaluation.distribution import (
    compare_distributions,
    coverage,
    distances,
    mmd_p,
    nearest_train_ratio,
    two_sample_accuracies,
)

ROWS, EVERY, WIDTH = 200, 10, 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def on_curve(positions, noise=0.02, seed=0):
    """Points of a smooth closed curve in 8 dimensions at positions in [0, 1), with a little noise."""
    angles = 2 * math.pi * positions[:, None] * torch.arange(1, WIDTH // 2 + 1)
    curve = torch.cat([angles.cos(), angles.sin()], 1) / torch.arange(1, WIDTH // 2 + 1).repeat(2).sqrt()
    return curve + noise * torch.randn(curve.shape, generator=generator(seed))


@pytest.fixture(scope="module")
def curve():
    """A trajectory, whose rows follow each other."""
    return on_curve(torch.arange(ROWS) / ROWS)


def seen_of(rows):
    return rows[torch.arange(ROWS) % EVERY != EVERY // 2]


def gaussian_fit(rows, num, seed):
    covariance = torch.linalg.cholesky(torch.cov(rows.T))
    return rows.mean(0) + torch.randn(num, rows.shape[1], generator=generator(seed)) @ covariance.T


@pytest.fixture(scope="module")
def found(curve):
    seen = seen_of(curve)
    chosen = torch.randint(len(seen), (60,), generator=generator(5))
    groups = {
        "right": on_curve(torch.rand(60, generator=generator(1)), seed=2),
        "gaussian": gaussian_fit(seen, 60, 3),
        "copies": seen[chosen] + 1e-3 * torch.randn(60, WIDTH, generator=generator(4)),
        "part": on_curve(0.5 * torch.rand(60, generator=generator(6)), seed=7),
    }
    return compare_distributions(groups, curve, EVERY, n_effective=4.0)


def test_draws_of_the_same_curve_are_not_told_from_rows_that_alternate_with_those_seen(found):
    right, original = found["right"], found["original"]
    low, high = original.ci95.two_sample_accuracy
    assert low < 0.5 < high and high - low < 0.2
    assert original.two_sample_accuracy == pytest.approx(0.5, abs=0.03)
    assert right.two_sample_accuracy == pytest.approx(0.5, abs=0.05)
    assert right.mmd_p > 0.05 and original.mmd_p > 0.05
    assert right.coverage == pytest.approx(original.coverage, abs=0.2) and original.coverage > 0.7
    low, high = right.ci95.nearest_train_ratio
    assert low < 1 < high and right.nearest_train_ratio == pytest.approx(1, abs=0.15)
    assert original.n_effective == 4 and right.n_effective is None and original.nearest_train_ratio is None


def test_a_gaussian_with_the_mean_and_covariance_of_a_curve_is_told_from_it(found):
    assert found["gaussian"].two_sample_accuracy > 0.8
    assert found["gaussian"].coverage < 0.3
    assert found["gaussian"].nearest_train_ratio == pytest.approx(1, abs=0.05), "it copies nobody"


def test_half_of_the_curve_is_told_from_all_of_it(found):
    assert found["part"].mmd_p < 0.01
    assert found["part"].coverage < 0.65
    assert found["part"].two_sample_accuracy > 0.6


def test_copies_pass_as_the_distribution_and_are_found_by_their_nearest_rows(found):
    assert found["copies"].two_sample_accuracy < 0.55 and found["copies"].coverage > 0.7
    assert found["copies"].nearest_train_ratio < 0.2
    assert found["copies"].ci95.nearest_train_ratio[1] < 0.3


def test_the_plain_nearest_neighbour_test_would_be_biased_here(curve):
    """The reason for comparing with rows seen: against each other, draws and alternating rows are far below ½."""
    held = curve[torch.arange(ROWS) % EVERY == EVERY // 2]
    drawn = on_curve(torch.rand(len(held), generator=generator(1)), seed=2)
    both = torch.cat([drawn, held])
    nearest = distances(both, both).fill_diagonal_(math.inf).argmin(1)
    own = (nearest < len(held)) == (torch.arange(len(both)) < len(held))
    assert own.double().mean() < 0.35


def test_independent_rows_of_one_gaussian_give_half_and_uniform_p():
    accuracies, ps, ratios, covered = [], [], [], []
    for seed in range(20):
        rows = torch.randn(140, 4, generator=generator(seed), dtype=torch.float64)
        drawn, seen, unseen = rows[:40], rows[40:100], rows[100:]
        accuracies.append(sum(two_sample_accuracies(drawn, seen, unseen)) / 2)
        ps.append(mmd_p(drawn, seen, unseen, 2.0, generator(seed)))
        ratios.append(nearest_train_ratio(drawn, rows[40:], torch.arange(100) % 5, unseen[:20], generator())[0])
        covered.append(coverage(drawn, seen, unseen))
    assert torch.tensor(accuracies).mean() == pytest.approx(0.5, abs=0.02)
    assert 0.3 < torch.tensor(ps).mean() < 0.7 and min(ps) < 0.3 and max(ps) > 0.7
    # Of 40 draws and 99 others, the 5 nearest hold no draw with a chance of Π (99 - i) / (139 - i).
    expected = 1 - math.prod((99 - i) / (139 - i) for i in range(5))
    assert torch.tensor(covered).mean() == pytest.approx(expected, abs=0.04)


def test_draws_that_are_only_elsewhere_have_a_small_p():
    rows = torch.randn(140, 4, generator=generator(), dtype=torch.float64)
    drawn, seen, unseen = rows[:40], rows[40:100], rows[100:]
    assert mmd_p(drawn + 1, seen, unseen, 2.0, generator()) < 0.01
    assert mmd_p(drawn + 1, seen, unseen + 2, 2.0, generator()) > 0.9, "nearer to the unseen ones than rows seen"


def test_ratio_of_a_draw_without_preference_is_one_however_many_rows_were_seen():
    ratios = []
    for seed in range(30):
        rows = torch.randn(200, 3, generator=generator(seed), dtype=torch.float64)
        drawn = torch.randn(100, 3, generator=generator(100 + seed), dtype=torch.float64)
        held = torch.arange(200) % EVERY == EVERY // 2
        phases = torch.arange(200)[~held] % EVERY
        ratios.append(nearest_train_ratio(drawn, rows[~held], phases, rows[held], generator())[0])
    assert torch.tensor(ratios).mean() == pytest.approx(1, abs=0.02)
    copies, interval = nearest_train_ratio(rows[~held][::3], rows[~held], phases, rows[held], generator())
    assert copies == 0 and interval == [0, 0]
    assert nearest_train_ratio(rows[held], rows[~held], phases, rows[held], generator()) == (None, None)


def test_accuracy_is_the_mean_over_all_training_sets():
    """The closed form against 4 000 classifiers that were drawn."""
    rows = torch.randn(22, 2, generator=generator(3), dtype=torch.float64)
    drawn, seen, unseen = rows[:7] + 0.5, rows[7:17], rows[17:]
    told, recognised = two_sample_accuracies(drawn, seen, unseen)
    draws, right = generator(0), torch.zeros(2)
    to_drawn, to_seen, of_unseen = distances(drawn, drawn), distances(drawn, seen), distances(unseen, seen)
    for _ in range(4000):
        own, other = torch.randperm(6, generator=draws)[:5], torch.randperm(10, generator=draws)[:5]
        row = int(torch.randint(7, (1,), generator=draws))
        own = own + (own >= row)
        right[0] += (to_drawn[row, own].min() < to_seen[row, other].min()).item()
        row, own = int(torch.randint(5, (1,), generator=draws)), torch.randperm(7, generator=draws)[:5]
        right[1] += (of_unseen[row, other].min() < distances(unseen, drawn)[row, own].min()).item()
    assert right / 4000 == pytest.approx(torch.tensor([told, recognised]), abs=0.03)


def test_too_few_rows_or_draws_say_nothing():
    rows = torch.randn(40, 3, generator=generator())
    assert compare_distributions({"generated": rows[:1]}, rows, EVERY) == {}
    assert compare_distributions({"generated": rows[:5]}, rows[:9], EVERY) == {}
    assert list(compare_distributions({"generated": rows[:5]}, rows, EVERY)) == ["original", "generated"]
    same = compare_distributions({"generated": torch.zeros(5, 3)}, torch.zeros(40, 3), EVERY)["generated"]
    assert same.two_sample_accuracy == 0.5 and same.nearest_train_ratio is None and same.mmd_p == 1
