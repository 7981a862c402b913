import pytest
import torch
from torch import nn

from pdiff_hf import AutoencoderPCA
from pdiff_hf.evaluation.baselines import (
    GaussianOfRows,
    averages,
    gaussian,
    greedy_soup,
    interpolations,
    latent_gaussian,
    noised_originals,
    swag,
    uniform_soup,
)
from pdiff_hf.evaluation.groups import build_groups, count_independent
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


def test_groups_have_as_many_draws_as_the_generator_and_soups_are_one_network(layout, originals):
    generated = originals[:4] + 1
    given = {"val_worth": lambda vectors: vectors[:, 0], "draw_latents": lambda num, _: originals[:num]}
    groups, seconds = build_groups(originals, generated, layout, originals[:3], **given)
    assert {name: len(vectors) for name, vectors in groups.items()} == {
        "original": 6,
        "reconstructed": 3,
        "generated": 4,
        "generated_uniform_soup": 1,
        "generated_greedy_soup": 1,
        "uniform_soup": 1,
        "greedy_soup": 1,
        "average_16": 4,
        "noise_0.05": 4,
        "noise_0.1": 4,
        "gaussian": 4,
        "pca_gaussian": 4,
        "gaussian_latents": 4,
        "swag": 4,
        "interpolation": 4,
        "slerp": 4,
    }
    assert set(seconds) == set(groups) - {"original", "reconstructed", "generated"}
    assert all(value > 0 for value in seconds.values())
    without = {"reconstructed", "greedy_soup", "generated_greedy_soup", "gaussian_latents"}
    assert without.isdisjoint(build_groups(originals, generated, layout)[0])


def test_soups_of_generated_networks_are_made_as_those_of_originals(layout, originals):
    generated = originals[:4] + torch.arange(4)[:, None]
    groups, _ = build_groups(originals, generated, layout, val_worth=lambda vectors: -vectors[:, 0].abs())
    as_originals, _ = build_groups(generated, originals, layout, val_worth=lambda vectors: -vectors[:, 0].abs())
    for name in ("uniform_soup", "greedy_soup"):
        assert torch.equal(groups[f"generated_{name}"], as_originals[name])
        assert not torch.equal(groups[f"generated_{name}"], groups[name])


@pytest.mark.filterwarnings("error")
def test_tensor_without_values_is_no_hindrance():
    layout = ParameterLayout.from_model(nn.ParameterDict({"a": torch.zeros(5), "empty": torch.zeros(0, 4)}))
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    groups, _ = build_groups(rows, rows, layout, rows, lambda vectors: vectors[:, 0])
    assert all(vectors.isfinite().all() for vectors in groups.values())


def test_groups_depend_on_the_seed_alone(layout, originals):
    first, again, other = (build_groups(originals, originals, layout, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in ("noise_0.1", "swag", "gaussian"))


def test_greedy_soup_takes_what_does_not_lower_its_accuracy():
    # Accuracy is the distance to the origin: from the best original on, only those that pull the mean there stay.
    originals = torch.tensor([[9.0, 0.0], [2.0, 0.0], [-2.5, 0.0], [0.0, 7.0]])
    tried = []

    def accuracy(vectors):
        tried.extend(vectors.tolist())
        return -vectors.norm(dim=1)

    torch.testing.assert_close(greedy_soup(originals, accuracy), torch.tensor([[-0.25, 0.0]]))
    # After all originals: with the second best, then with each of the worse ones.
    assert tried[4:] == [pytest.approx(x) for x in ([-0.25, 0], [-0.5 / 3, 7 / 3], [8.5 / 3, 0])]


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


@pytest.mark.parametrize("num_rows", [30, 4])
def test_gaussian_of_rows_has_their_mean_and_covariance_also_when_they_are_few(num_rows):
    latents = torch.randn(num_rows, 3, 2, generator=generator(), dtype=torch.float64) * torch.arange(1, 4)[:, None]
    draws = GaussianOfRows(latents).sample(40_000, generator())
    assert draws.shape == (40_000, 3, 2)
    # 40 000 draws: the standard error of a covariance of variances up to 9 is below 0.07.
    torch.testing.assert_close(draws.mean(0), latents.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.flatten(1).T.cov(), latents.flatten(1).T.cov(), atol=0.35, rtol=0)


def test_latent_gaussian_is_decoded_by_the_autoencoder(layout, originals):
    autoencoder = AutoencoderPCA(layout=layout.to_dict(), latent_channels=5, latent_length=1)
    autoencoder.fit_statistics(originals)
    autoencoder.set_latent_statistics(autoencoder.encode_rows(originals))
    latents = autoencoder.scale_latents(autoencoder.encode_rows(originals))
    networks = latent_gaussian(GaussianOfRows(latents), autoencoder, 2000, generator())
    assert networks.shape == (2000, layout.num_parameters)
    for spec in layout.tensors:
        if spec.transform == "log":
            assert (networks[:, spec.offset : spec.offset + spec.numel] > 0).all()
    again = autoencoder.scale_latents(autoencoder.encode_rows(networks))
    # 2 000 draws of latents with a standard deviation near 1: a standard error of 0.02.
    torch.testing.assert_close(again.mean(0), latents.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(again.flatten(1).T.cov(), latents.flatten(1).T.cov(), atol=0.15, rtol=0)


def test_swag_has_half_of_the_diagonal_and_half_of_the_covariance_of_the_last_deviations():
    layout = ParameterLayout.from_model(nn.Sequential(nn.BatchNorm1d(5)), buffers=True)
    originals = torch.randn(30, layout.num_parameters, generator=generator()).double()
    variances = next(spec for spec in layout.tensors if spec.transform == "log")
    own = slice(variances.offset, variances.offset + variances.numel)
    logs = originals.clone()
    originals[:, own] = originals[:, own].exp()
    draws = swag(originals, layout, 20_000, generator(), rank=5)
    assert (draws[:, own] > 0).all()
    draws[:, own] = draws[:, own].log()
    deviations = torch.stack([logs[row] - logs[: row + 1].mean(0) for row in range(25, 30)])
    covariance = 0.5 * logs.var(0, correction=0).diag() + deviations.T @ deviations / (2 * 4)
    torch.testing.assert_close(draws.mean(0), logs.mean(0), atol=0.05, rtol=0)
    # 20 000 draws: the standard error of a covariance of such sizes is about 0.01.
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.06, rtol=0)


def test_swag_of_one_original_is_that_original(layout, originals):
    torch.testing.assert_close(swag(originals[:1], layout, 3, generator()), originals[:1].repeat(3, 1))


def test_originals_with_noise_count_as_the_mean_of_both_parts_of_their_variance_says():
    """By trials: 4 independent originals, 10 times each, and noise of twice their deviation drawn for each."""
    size, noise, generator = 40, 2.0, torch.Generator().manual_seed(0)
    means = []
    for _ in range(4000):
        rows = torch.randn(4, generator=generator).repeat_interleave(10)
        means.append((rows + noise * torch.randn(size, generator=generator)).mean())
    variance = torch.stack(means).var().item()
    counts = count_independent(
        {"noise_0.1": size, "original": 40}, {"noise_0.1": (1 + noise**2) ** 0.5}, {"original": 4.0}
    )
    # The variance of 4 000 trials has a standard error of 2 %.
    assert (1 + noise**2) / counts["noise_0.1"] == pytest.approx(variance, rel=0.08)
    assert (
        count_independent({"noise_0.1": 40, "original": 40}, {"noise_0.1": 1.0}, {"original": 4.0})["noise_0.1"] == 4
    )
    assert (
        count_independent({"noise_0.1": 3, "original": 40}, {"noise_0.1": None}, {"original": 4.0})["noise_0.1"] == 3
    )
