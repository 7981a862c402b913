import pytest
import torch
from torch import nn

from pdiff_hf.evaluation import build_groups
from pdiff_hf.evaluation.baselines import (
    averages,
    gaussian,
    interpolations,
    noised_originals,
    pca_gaussian,
    uniform_soup,
)
from pdiff_hf.layout import ParameterLayout


@pytest.fixture
def layout():
    return ParameterLayout.from_model(nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50)), buffers=True)


@pytest.fixture
def originals(layout):
    values = torch.randn(6, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    for spec in layout.tensors:
        rows = values[:, spec.offset : spec.offset + spec.numel]
        rows.copy_(rows.exp() if spec.transform == "log" else 10 ** -len(spec.name) * rows)
    return values


def test_groups_have_as_many_draws_as_the_generator_and_soup_is_one_network(layout, originals):
    generated = originals[:4] + 1
    groups = build_groups(originals, generated, layout, reconstructed=originals[:3])
    assert {name: len(vectors) for name, vectors in groups.items()} == {
        "original": 6,
        "reconstructed": 3,
        "generated": 4,
        "uniform_soup": 1,
        "average_16": 4,
        "noise_0.05": 4,
        "noise_0.1": 4,
        "gaussian": 4,
        "pca_gaussian": 4,
        "interpolation": 4,
    }
    assert "reconstructed" not in build_groups(originals, generated, layout)


def test_groups_depend_on_the_seed_alone(layout, originals):
    first, again, other = (build_groups(originals, originals, layout, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise_0.1"], other["noise_0.1"])


def test_uniform_soup_is_the_mean(originals):
    torch.testing.assert_close(uniform_soup(originals), originals.mean(0, keepdim=True))


def test_noise_is_relative_to_the_spread_of_each_tensor(layout, originals):
    before = originals.clone()
    networks = noised_originals(originals[:1], layout, 200, torch.Generator().manual_seed(0), sigma=0.1)
    for spec in layout.tensors:
        tensors = networks[:, spec.offset : spec.offset + spec.numel]
        original = originals[:1, spec.offset : spec.offset + spec.numel]
        if spec.transform == "log":
            assert (tensors > 0).all()
            tensors, original = tensors.log(), original.log()
        noise = (tensors - original).std(correction=0)
        # 200 x 50 draws at the least: the relative standard error of a standard deviation is below 1 %.
        torch.testing.assert_close(noise, 0.1 * original.std(correction=0), rtol=0.03, atol=0)
    assert torch.equal(originals, before)


def generator():
    return torch.Generator().manual_seed(0)


def test_average_is_the_mean_of_different_originals():
    originals = torch.eye(20)
    networks = averages(originals, 5, generator(), size=16)
    # Each original has a coordinate of its own: 16 of them, a sixteenth each.
    assert torch.equal((networks > 0).sum(1), torch.full((5,), 16))
    torch.testing.assert_close(networks.max(1).values, torch.full((5,), 1 / 16))
    assert not torch.equal(networks[0], networks[1])
    torch.testing.assert_close(averages(originals[:3], 2, generator()), uniform_soup(originals[:3]).repeat(2, 1))


def test_interpolation_lies_between_two_different_originals():
    networks = interpolations(torch.eye(20), 50, generator())
    assert ((networks > 0).sum(1) == 2).all()
    torch.testing.assert_close(networks.sum(1), torch.ones(50))
    assert torch.equal(interpolations(torch.eye(20)[:1], 2, generator()), torch.eye(20)[:1].repeat(2, 1))


def test_gaussian_has_mean_and_deviation_of_every_coordinate_and_positive_variances(layout, originals):
    draws = gaussian(originals, layout, 4000, generator())
    for spec in layout.tensors:
        own = slice(spec.offset, spec.offset + spec.numel)
        drawn, fitted = draws[:, own], originals[:, own]
        if spec.transform == "log":
            assert (drawn > 0).all()
            drawn, fitted = drawn.log(), fitted.log()
        scale = fitted.std(0, correction=0)
        # 4 000 draws: the standard error of a mean is 1.6 %, of a deviation 1.1 %; five of them over all coordinates.
        assert ((drawn.mean(0) - fitted.mean(0)).abs() < 0.08 * scale).all()
        assert ((drawn.std(0) - scale).abs() < 0.06 * scale).all()


def test_pca_gaussian_has_the_covariance_of_the_leading_components(layout):
    directions = torch.linalg.qr(torch.randn(layout.num_parameters, 3, generator=generator()))[0].T
    scores = torch.randn(30, 3, generator=generator()) * torch.tensor([3.0, 2.0, 0.01])
    originals = (scores @ directions).double()
    variances = next(spec for spec in layout.tensors if spec.transform == "log")
    own = slice(variances.offset, variances.offset + variances.numel)
    originals[:, own] = originals[:, own].exp()
    draws = pca_gaussian(originals, layout, 4000, generator())
    assert (draws[:, own] > 0).all()
    draws[:, own] = draws[:, own].log()
    drawn = (draws @ directions.T.double()).std(0)
    expected = scores.std(0, correction=0).double()
    # The third direction holds far less than a hundredth of the variance and is left out.
    torch.testing.assert_close(drawn[:2], expected[:2], rtol=0.1, atol=0)
    assert drawn[2] < 0.1 * expected[1]
    assert torch.linalg.matrix_rank(draws - draws.mean(0), rtol=1e-6) == 2
