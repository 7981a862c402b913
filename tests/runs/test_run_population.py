"""Whether the report of a zoo of independent runs judges it as a population, and by whom."""

from functools import partial

import pytest
import torch

from factories import TINY_ZOO
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.permutations import find_permutations
from pdiff_hf.files import read_json
from pdiff_hf.models.auto import DENOISERS, load_autoencoder
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.runs.groups import make_groups
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.rivals import RIVALS, make_rivals
from pdiff_hf.runs.stages import collect, run_recipe
from pdiff_hf.tasks.evaluators import make_evaluator, open_task

pytestmark = pytest.mark.usefixtures("no_figures")

SEEN, HELD_OUT = split_rows(12, 3)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "run"
    return folder, run_recipe(load_recipe("digits-runs", TINY_ZOO), folder)


def test_groups_of_a_zoo_stand_beside_originals_that_were_held_out(zoo):
    folder, metrics = zoo
    found = metrics.population
    assert list(found)[:3] == ["original", "seen", "seen_redrawn"]
    assert {"generated", "reconstructed", "uniform_soup", "gaussian", "pca_gaussian", "gaussian_latents"} <= set(found)
    assert {"noise_latents", "noise_one", "matched_soup", "matched_gaussian"} <= set(found) & set(metrics.groups)
    assert metrics.original.n == 12 and (found["original"].n, found["seen"].n) == (4, 8)
    assert found["seen_redrawn"].n == found["generated"].n == 5 and found["reconstructed"].n == 4
    assert found["seen"].near == pytest.approx(0, abs=1e-5) and found["seen"].copies == 1
    assert found["original"].near == pytest.approx(1) and found["original"].num_inputs == metrics.num_test
    assert metrics.finding in ("copying", "collapsed", "worse", "less_diverse", "more_diverse", "equal_population")
    assert Metrics.read(folder / "report" / "metrics.json").population == found
    assert "## Is it a population like the originals'?" in (folder / "report" / "report.md").read_text()
    card = (folder / "pipeline" / "README.md").read_text()
    assert "**As a population**" in card and "- The networks seen: accuracy" in card
    # The autoencoder compares weights: p-diff stands beside those that do not.
    assert not set(RIVALS) & set(metrics.groups)


def test_held_out_originals_are_those_that_nobody_saw(zoo):
    folder, metrics = zoo
    dataset = ParameterDataset(folder / "dataset")
    accuracy = make_evaluator(dataset, "test").accuracy(dataset.vectors())
    for name, rows in (("original", HELD_OUT), ("seen", SEEN)):
        assert metrics.population[name].accuracy == pytest.approx(accuracy[rows].mean().item())
        assert metrics.population[name].accuracy_min == pytest.approx(accuracy[rows].min().item())


def test_what_is_made_of_originals_is_made_of_those_seen(zoo):
    folder, _ = zoo
    dataset = ParameterDataset(folder / "dataset")
    vectors, autoencoder = dataset.vectors(), load_autoencoder(folder / "pipeline" / "autoencoder")
    other = vectors.clone()
    other[HELD_OUT] = 1.0
    spec = find_permutations(dataset.base_model.build(), dataset.layout)

    def make(rows, apart):
        def draw(num, generator):
            return torch.zeros(num, rows.shape[1])

        return dict(make_groups(rows, vectors[:5], autoencoder, draw, lambda v: v.norm(dim=1), apart, spec, 0))

    first, second = (make(rows, (SEEN, HELD_OUT)) for rows in (vectors, other))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"original", "reconstructed"} and "matched_gaussian" in first
    torch.testing.assert_close(first["uniform_soup"][0], vectors[SEEN].mean(0))
    # On a trajectory all are; and what only zoos have is left out.
    trajectory = make(vectors, None)
    torch.testing.assert_close(trajectory["uniform_soup"][0], vectors.mean(0))
    assert not {"noise_latents", "noise_one", "matched_soup", "matched_gaussian"} & set(trajectory)


def test_rivals_are_trained_on_rows_seen(zoo, monkeypatch):
    folder, _ = zoo
    # The default denoiser in short.
    short = partial(DENOISERS["unet_1d_condition"], steps=4, lr_warmup_steps=0, block_out_channels=(16,))
    monkeypatch.setattr("pdiff_hf.runs.rivals.DENOISERS", {"unet_1d_condition": short})
    dataset = ParameterDataset(folder / "dataset")
    vectors, spec = dataset.vectors(), find_permutations(dataset.base_model.build(), dataset.layout)
    other = vectors.clone()
    other[HELD_OUT] *= 3
    options = (dataset.layout, SEEN, 3, 4, spec, 0)
    networks, seconds = make_rivals(RIVALS, vectors, *options)
    assert set(networks) == set(seconds) == set(RIVALS) and min(seconds.values()) > 0
    assert all(rows.shape == (4, vectors.shape[1]) and rows.isfinite().all() for rows in networks.values())
    again, _ = make_rivals(RIVALS, other, *options)
    assert all(torch.equal(networks[name], again[name]) for name in RIVALS)
    assert not torch.equal(networks["pdiff"], networks["pdiff_aligned"])
    assert make_rivals(["pdiff_aligned"], vectors, *options[:4], None, 0)[0] == {}, (
        "networks whose units nobody knows how to match"
    )
    assert make_rivals(RIVALS, vectors[:3], dataset.layout, torch.arange(2), 3, 4, spec, 0) == ({}, {})


def test_one_trajectory_is_no_population(tiny_run):
    report = tiny_run / "report"
    assert (
        "population" not in read_json(report / "metrics.json")
        or Metrics.read(report / "metrics.json").population == {}
    )
    assert "Is it a population" not in (report / "report.md").read_text(encoding="utf-8")


def test_populations_with_labels_of_their_own_are_told_apart(tmp_path):
    populations = "collect.populations=[{name: a}, {name: b, relabel: 1}, {name: c, label_noise: 0.1}]"
    options = [*TINY_ZOO, "collect.runs=6", "base_training.epochs=20", populations]
    collect(load_recipe("digits-runs", options), tmp_path / "zoo")
    dataset = ParameterDataset(tmp_path / "zoo")
    evaluator = make_evaluator(dataset, "test")
    # The labels of a and c are the same.
    assert evaluator.populations == ("a, c", "b")
    labels = open_task(dataset).arrays("test")[1]
    assert torch.equal(evaluator.targets[0], labels) and not torch.equal(evaluator.targets[1], labels)
    output = evaluator.predict(dataset.vectors())
    own = torch.tensor([{"a": 0, "b": 1, "c": 0}[name] for name in dataset.populations])
    assert torch.equal(output.population, own) and output.accuracy.min() > 0.25
