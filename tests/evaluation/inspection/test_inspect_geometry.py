import math

import pytest
import torch

from pdiff_hf import ParameterLayout
from pdiff_hf.evaluation import similarity
from pdiff_hf.evaluation.inspection.geometry import (
    linear_explained_by_kind,
    linear_explained_variance,
    nearest_distances,
    spectrum,
)
from pdiff_hf.evaluation.similarity import gram_matrix
from pdiff_hf.layout import TensorSpec
from pdiff_hf.models.normalizer import ParameterNormalizer


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred_gram(rows):
    rows = rows - rows.mean(0)
    return rows @ rows.T


def test_effective_rank_of_equally_strong_directions_is_their_number():
    rows = torch.linalg.qr(gaussian(40, 12) - gaussian(40, 12).mean(0)).Q
    found = spectrum(rows @ rows.T)
    assert found["rank"] == 12
    assert found["effective_rank"] == pytest.approx(12)
    assert found["explained_variance"] == pytest.approx({"1": 1 / 12, "2": 2 / 12, "8": 8 / 12, "32": 1, "128": 1})
    assert found["num_components_99"] == 12


def test_effective_rank_is_the_entropy_of_singular_values_and_not_of_variances():
    rows = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert spectrum(rows @ rows.T)["effective_rank"] == pytest.approx(math.exp(entropy))


def test_float32_rows_have_their_planted_rank():
    vectors = (1 + gaussian(50, 6) @ gaussian(6, 1000, seed=1)).float()
    normalizer = ParameterNormalizer(1000, "per_parameter")
    normalizer.fit(vectors)
    assert spectrum(gram_matrix(vectors, normalizer))["rank"] == 6


def test_components_of_all_coordinates_explain_each_kind_as_the_projection_does():
    rows = gaussian(30, 3) @ gaussian(3, 40, seed=1) + gaussian(30, 40, seed=2)
    train, heldout = torch.arange(24), torch.arange(24, 30)
    groups = torch.arange(40) % 3
    deviations = rows - rows.mean(0)
    grams = torch.stack([deviations[:, groups == kind] @ deviations[:, groups == kind].T for kind in range(3)])
    mean = rows[train].mean(0)
    basis = torch.linalg.svd(rows[train] - mean, full_matrices=False).Vh[:5]
    total = rows[heldout] - mean
    squares = [part.square().sum(0) for part in (total - total @ basis.T @ basis, total)]
    found = linear_explained_by_kind(grams, train, heldout, 5)
    shares = [1 - (squares[0][groups == kind].sum() / squares[1][groups == kind].sum()).item() for kind in range(3)]
    assert list(found["explained_by_kind"].values()) == pytest.approx(shares, abs=1e-9)
    assert found["explained_variance"] == pytest.approx(linear_explained_variance(grams.sum(0), train, heldout, 5))
    assert linear_explained_by_kind(torch.zeros_like(grams), train, heldout, 5) is None


def test_equal_rows_have_no_directions():
    found = spectrum(torch.zeros(5, 5, dtype=torch.float64))
    assert found["rank"] == found["effective_rank"] == found["num_components_99"] == 0


def test_gram_matrix_of_blocks_is_that_of_all_normalised_columns(monkeypatch):
    layout = ParameterLayout((TensorSpec("weight", (20,), 0), TensorSpec("running_var", (30,), 20, "float32", "log")))
    vectors = gaussian(9, 50).exp().float()
    normalizer = ParameterNormalizer(50, "per_parameter", layout.to_dict())
    normalizer.fit(vectors)
    expected = centred_gram(normalizer.normalize(vectors).double())
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 9 * 7)
    torch.testing.assert_close(gram_matrix(vectors, normalizer), expected)
    logs = torch.cat([vectors[:, :20], vectors[:, 20:].log()], 1).double()
    # The normaliser works in float32.
    torch.testing.assert_close(expected, centred_gram((logs - logs.mean(0)) / logs.std(0)), atol=1e-4, rtol=1e-4)


def test_held_out_rows_are_explained_as_their_projection_on_the_components():
    rows = gaussian(30, 5) @ gaussian(5, 80, seed=1) + 0.3 * gaussian(30, 80, seed=2) + 7
    heldout = torch.arange(30) % 10 == 5
    mean = rows[~heldout].mean(0)
    basis = torch.linalg.svd(rows[~heldout] - mean, full_matrices=False).Vh[:5]
    residual = (rows[heldout] - mean) - (rows[heldout] - mean) @ basis.T @ basis
    expected = 1 - (residual.square().sum() / (rows[heldout] - mean).square().sum()).item()
    found = linear_explained_variance(centred_gram(rows), (~heldout).nonzero()[:, 0], heldout.nonzero()[:, 0], 5)
    assert found == pytest.approx(expected)


def test_independent_directions_explain_nothing_of_a_left_out_run():
    rows = torch.cat([gaussian(1, 5000, seed=run) + 0.01 * gaussian(6, 5000, seed=10 + run) for run in range(3)])
    runs = torch.arange(18) // 6
    assert linear_explained_variance(centred_gram(rows), runs != 0, runs == 0, 11) < 0.3


def test_nearest_distances_within_everything_and_in_other_runs():
    vectors = torch.tensor([[0.0, 0], [1, 0], [4, 0], [4, 3]])
    found = nearest_distances(vectors, torch.tensor([0, 0, 1, 1]))
    assert found["nearest"] == pytest.approx({"min": 1, "q25": 1, "median": 2, "q75": 3, "max": 3})
    assert found["nearest_in_other_runs"]["min"] == pytest.approx(3)
    assert found["nearest_in_other_runs"]["max"] == pytest.approx(math.hypot(3, 3))
    assert nearest_distances(vectors, torch.zeros(4))["nearest_in_other_runs"] is None
