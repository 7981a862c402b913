"""Networks that have no room in memory: made block by block into a file, one group after another, the same numbers."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from pdiff_hf.data import vectors as vectors_module
from pdiff_hf.data.vectors import StoredVectors, empty_vectors
from pdiff_hf.evaluation import baselines, matching, similarity
from pdiff_hf.evaluation.batch_norm import Reestimated
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.groups import GROUPS, Groups
from pdiff_hf.evaluation.matching import align_networks
from pdiff_hf.evaluation.permutations import permutation_spec
from pdiff_hf.layout import ParameterLayout

BASELINES = {
    "uniform_soup": lambda given, layout, generator: baselines.uniform_soup(given),
    "greedy_soup": lambda given, layout, generator: baselines.greedy_soup(given, lambda own: -own[:, :5].norm(dim=1)),
    "averages": lambda given, layout, generator: baselines.averages(given, 19, generator, size=3),
    "interpolations": lambda given, layout, generator: baselines.interpolations(given, 19, generator),
    "noised_originals": lambda *given: baselines.noised_originals(*given[:2], 19, given[2], sigma=0.05),
    "gaussian": lambda given, layout, generator: baselines.gaussian(given, layout, 19, generator),
    "pca_gaussian": lambda given, layout, generator: baselines.pca_gaussian(given, layout, 19, generator),
    "swag": lambda given, layout, generator: baselines.swag(given, layout, 19, generator, rank=4),
}


def small_network():
    """41 · 53 weights and biases, which 16 does not divide, with running statistics of which one is kept in log."""
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 53), nn.BatchNorm1d(53), nn.ReLU(), nn.Linear(53, 4))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = small_network().eval()
    layout = ParameterLayout.from_model(model, buffers=True)
    originals = layout.flatten(model) * (1 + 0.1 * torch.rand(9, layout.num_parameters)) + 0.01
    return model, layout, originals


@pytest.fixture
def in_files(monkeypatch):
    """Everything goes into files, a few values at a time."""

    def start():
        monkeypatch.setattr(vectors_module, "MAX_RESIDENT_BYTES", 0)
        for module, values in ((baselines, 1000), (similarity, 1000)):
            monkeypatch.setattr(module, "BLOCK_VALUES", values)
        monkeypatch.setattr(matching, "MEAN_VALUES", 1000)

    return start


def stored(vectors):
    found = empty_vectors(len(vectors), vectors)
    found[:] = vectors
    assert isinstance(found, StoredVectors)
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_draws_in_blocks_are_the_draws_at_once(name, setting, in_files):
    _, layout, originals = setting
    make = BASELINES[name]
    expected = make(originals, layout, torch.Generator().manual_seed(3))
    in_files()
    found = make(stored(originals), layout, torch.Generator().manual_seed(3))
    assert isinstance(found, StoredVectors) == (len(expected) > 1)
    # Sums over the originals are rounded in another way in some of them; another draw would differ in its first digit.
    torch.testing.assert_close(found[:], expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("num, size", [(7, 3), (16, 5), (4097, 1), (4097, 300), (2003, 2003)])
def test_normal_numbers_some_at_a_time_are_those_of_one_call(num, size):
    expected = torch.randn(num, generator=torch.Generator().manual_seed(0))
    normals = baselines._Normals(num, torch.Generator().manual_seed(0))
    sizes = [min(size, num - start) for start in range(0, num, size)]
    assert torch.equal(torch.cat([normals.take(own) for own in sizes]), expected)


def test_stored_vectors_are_written_as_a_tensor():
    expected = torch.zeros(6, 5)
    found = StoredVectors(vectors_module.tempfile.TemporaryFile(), 5, torch.arange(6))
    generator = torch.Generator().manual_seed(0)
    for index, shape in (
        (slice(None), (6, 5)),
        (slice(1, 3), (2, 5)),
        ((torch.tensor([4, 0]), slice(1, 3)), (2, 2)),
        ((slice(None), slice(3, 5)), (6, 1)),
    ):
        values = torch.randn(shape, generator=generator)
        found[index], expected[index] = values, values
        assert torch.equal(found[:], expected)
    # A part of the rows is a view.
    found.take(torch.tensor([5, 2]))[:1] = torch.ones(5)
    assert (found[5:] == 1).all() and torch.equal(found[:5], expected[:5])


def evaluate(setting):
    model, layout, originals = setting
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(60, 1, 5, 8, generator=generator), torch.randint(4, (60,), generator=generator)
    extended = Reestimated(model, layout, {})
    val, test = (ParameterEvaluator(model, layout, images[s], labels[s]) for s in (slice(20), slice(20, None)))
    groups = Groups(
        originals,
        originals[:7] if isinstance(originals, torch.Tensor) else originals.take(torch.arange(7)),
        layout,
        val_worth=val.worth,
    )
    spec = permutation_spec(model, layout)
    options = {"permutations": spec, "extend": extended.extend}
    metrics = evaluate_groups(groups, val, test, seconds=groups.seconds, **options).metrics.to_dict()
    assert set(groups.seconds) == set(groups) - {"original", "generated"}
    for group in metrics["groups"].values():
        del group["cost"]
    return metrics


def test_networks_in_files_are_evaluated_as_those_in_memory(setting, in_files):
    model, layout, originals = setting
    expected = evaluate(setting)
    in_files()
    found = evaluate((model, layout, stored(originals)))
    assert {*expected["groups"]} == {*found["groups"]} >= {"swag", "gaussian", "greedy_soup", "noise_0.05"}
    _assert_close(found, expected)


def _assert_close(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            _assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            _assert_close(*pair)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-5) if isinstance(expected, float) else expected)


def test_only_one_baseline_is_there_at_a_time(setting, monkeypatch):
    before, made = [], []
    for name, group in list(GROUPS.items()):
        if group.make is not None:

            def make(given, group=group, name=name):
                assert not [other for other, networks in before if networks() is not None], name
                made.append(name)
                networks = group.make(given)
                before.append((name, weakref.ref(networks)))
                return networks

            monkeypatch.setitem(GROUPS, name, replace(group, make=make))
    evaluate(setting)
    assert made and len(made) == len(set(made))


def test_matched_networks_in_files_are_those_in_memory(setting, in_files):
    model, layout, originals = setting
    spec = permutation_spec(model, layout)
    shuffled = matching.match(originals, originals[3].flip(0), spec)
    expected = align_networks(shuffled, spec)
    assert not torch.equal(expected, shuffled)
    in_files()
    assert torch.equal(align_networks(stored(shuffled), spec)[:], expected)


def test_statistics_are_put_behind_rows_when_these_are_read(setting):
    model, layout, originals = setting
    part = ParameterLayout(layout.tensors[:2])
    own = torch.rand(9, 53)
    networks = Reestimated(model, part, {"2.running_mean": own, "2.num_batches_tracked": torch.ones(9).long()})
    rows = originals[:, : part.num_parameters]
    expected = torch.cat([rows, own], 1)
    found = networks.extend(rows, "generated")
    assert found.shape == expected.shape and torch.equal(found[2:5], expected[2:5])
    assert torch.equal(found.take(torch.tensor([7, 1]))[:], expected[[7, 1]])
    assert torch.equal(networks.extend(rows, "gaussian")[:1][0, -53:], model[2].running_mean)
