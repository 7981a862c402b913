import pytest
import torch
from torch import nn

from pdiff_hf.evaluation import build_groups
from pdiff_hf.evaluation.baselines import noised_originals, uniform_soup
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
        "noise_0.05": 4,
        "noise_0.1": 4,
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
