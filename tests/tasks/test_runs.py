"""Collections of independent runs: `collect.kind: runs`."""

import sys

import pytest
import torch

from factories import Killed, kill_collection
from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.runs.recipe import Recipe, load_recipe
from pdiff_hf.runs.stages import prepare_base_model
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.collect import collect_checkpoints
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.populations import population_labels
from pdiff_hf.tasks.runs_config import RunsConfig, fine_tuning_config
from processes import launch_two, run

BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", hidden=[16, 16])
NORMS = BaseModel.imported("pdiff_hf.tasks.networks:resnet_mini", in_chans=1, channels=[4, 4, 4, 4])
BASE_TRAINING = BaseTrainingConfig(epochs=4, learning_rate=3e-2, train_batch_size=32, seed=3)
NUM_STEPS = 24


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


def collect(task, folder, base=BASE, seed=0, **values):
    torch.manual_seed(100)
    config = RunsConfig(**{"runs": 5, **values})
    collect_checkpoints(task, base, base.build(), BASE_TRAINING, config, folder, seed, progress=False)
    return ParameterDataset(folder)


def columns_of(dataset):
    return dataset.rows.remove_columns("parameters").with_format(None)[:]


def network_of(dataset, row):
    network = dataset.base_model.build()
    dataset.layout.load_into(network, dataset.vectors(rows=[row])[0])
    return network


def accuracy_of(network, images, labels):
    known = labels >= 0
    with torch.no_grad():
        return (network.eval()(images).argmax(-1) == labels)[known].float().mean().item()


def test_every_run_is_a_base_training_with_a_seed_of_its_own(task, tmp_path):
    dataset = collect(task, tmp_path / "zoo")
    columns = columns_of(dataset)
    assert columns["run"] == [f"run-{number}" for number in range(5)]
    assert columns["seed"] == [3, 4, 5, 6, 7]
    assert columns["step"] == [NUM_STEPS] * 5 and columns["epoch"] == [4.0] * 5
    assert "population" not in columns and dataset.populations is None
    for row, seed in enumerate(columns["seed"]):
        torch.manual_seed(seed)
        network = BASE.build()
        training = BASE_TRAINING.model_copy(update={"seed": seed})
        result = train_base_model(task, network, training, device="cpu", progress=False)
        torch.testing.assert_close(dataset.vectors()[row], dataset.layout.flatten(network), atol=1e-4, rtol=1e-3)
        # A prediction or two of a hundred may lie on the edge.
        assert columns["test_accuracy"][row] == pytest.approx(result["test_accuracy"], abs=0.021)


def test_rows_are_taken_at_shares_of_the_training(task, tmp_path):
    late, both = collect(task, tmp_path / "late"), collect(task, tmp_path / "both", at=[0.25, 1.0])
    columns = columns_of(both)
    assert columns["run"][:4] == ["run-0", "run-0", "run-1", "run-1"]
    assert columns["step"] == [6, 24] * 5 and columns["epoch"] == [1.0, 4.0] * 5
    assert torch.equal(both.vectors()[1::2], late.vectors())
    losses = columns["train_loss"]
    assert all(after < before for before, after in zip(losses[::2], losses[1::2], strict=True))


def test_shares_of_one_step_are_refused(task, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected shares of 24 steps that are different steps, found \[0\.5, 0\.51\]"
    ):
        collect(task, tmp_path / "zoo", at=[0.5, 0.51])


def test_killed_collection_goes_on_with_the_same_bits(task, tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.tasks.zoo.MAX_NETWORKS", 2)
    values = {"populations": [{"name": "digits"}, {"name": "others", "relabel": 1}], "at": [0.5, 1.0]}
    whole = collect(task, tmp_path / "whole", **values)
    made = kill_collection(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(task, tmp_path / "zoo", **values)
    resumed = collect(task, tmp_path / "zoo", **values)
    # The second part had no name yet.
    assert made == [[0, 1], [2, 3], [2, 3], [4]]
    assert torch.equal(resumed.vectors(), whole.vectors())
    assert columns_of(resumed) == columns_of(whole)


def test_norms_are_collected_with_their_statistics(task, tmp_path):
    with pytest.raises(ValueError, match=r"'conv1\.1\.running_mean' is left out; set .* collect\.buffers=true"):
        collect(task, tmp_path / "zoo", NORMS)
    dataset = collect(task, tmp_path / "zoo", NORMS, buffers=True, runs=3)
    images, labels = task.arrays("val")
    for row, expected in enumerate(columns_of(dataset)["val_accuracy"]):
        assert accuracy_of(network_of(dataset, row), images, labels) == pytest.approx(expected, abs=1e-6)
    assert dataset.vectors().std(0)[: dataset.layout.tensors[0].numel].min() > 0


def test_runs_of_a_head_share_the_rest_of_the_base_model(task, tmp_path):
    torch.manual_seed(0)
    model = NORMS.build()
    train_base_model(task, model, BASE_TRAINING, device="cpu", progress=False)
    config = RunsConfig(select="head", runs=4)
    collect_checkpoints(task, NORMS, model, BASE_TRAINING, config, tmp_path / "zoo", progress=False)
    dataset = ParameterDataset(tmp_path / "zoo")
    images, labels = task.arrays("test")
    for row, expected in enumerate(columns_of(dataset)["test_accuracy"]):
        network = network_of(dataset, row)
        assert torch.equal(network.conv1[0].weight, model.conv1[0].weight)
        assert accuracy_of(network, images, labels) == pytest.approx(expected, abs=1e-6)
    # Each began with a head of its own.
    assert dataset.vectors().std(0).median() > 0.02


POPULATIONS = [
    {"name": "digits"},
    {"name": "turned", "relabel": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]},
    {"name": "drawn", "relabel": 5},
    {"name": "low", "classes": [0, 1, 2, 3, 4]},
    {"name": "early", "at": [0.25]},
]


def test_networks_are_judged_by_the_labels_of_their_population(task, tmp_path):
    dataset = collect(task, tmp_path / "zoo", runs=11, populations=POPULATIONS)
    names, columns = dataset.populations, columns_of(dataset)
    assert sorted(names[:5]) == sorted(names[5:10]) == ["digits", "drawn", "early", "low", "turned"]
    assert columns["step"] == [6 if name == "early" else NUM_STEPS for name in names]
    assert set(dataset.metrics) == {"train_loss", "val_accuracy", "test_accuracy"}
    described = dataset.metadata["populations"]
    assert list(described) == [population["name"] for population in POPULATIONS]
    assert described["turned"]["labels"] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert described["low"]["labels"] == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    assert sorted(described["drawn"]["labels"]) == list(range(10)) != described["drawn"]["labels"]
    labels = population_labels(task, dataset.metadata, "test")
    images, own = task.arrays("test")
    assert torch.equal(labels["digits"], own) and torch.equal(labels["turned"], 9 - own)
    assert torch.equal(labels["low"], own.masked_fill(own > 4, -1))
    for row, (name, expected) in enumerate(zip(names, columns["test_accuracy"], strict=True)):
        network = network_of(dataset, row)
        assert accuracy_of(network, images, labels[name]) == pytest.approx(expected, abs=1e-6)
        if name != "early":
            assert expected > 0.3
        if name == "low":
            assert accuracy_of(network, images, own) < 0.6


def test_populations_do_not_depend_on_how_many_runs_there_are(task, tmp_path):
    few = collect(task, tmp_path / "few", runs=5, populations=POPULATIONS)
    many = collect(task, tmp_path / "many", runs=8, populations=POPULATIONS)
    assert few.populations == many.populations[:5]
    assert collect(task, tmp_path / "other", seed=4, runs=8, populations=POPULATIONS).populations != many.populations


def test_dataset_without_populations_has_no_labels_of_any(task, tmp_path):
    assert population_labels(task, collect(task, tmp_path / "zoo", runs=2).metadata, "val") == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relabel": [1, 0]}, "expected a label for each of 10 classes, found 2 in population 'b'"),
        ({"classes": [3, 10]}, "expected classes from 0 to 9, found 10 in population 'b'"),
        ({"train_size": 20}, "expected a batch of 32 or more train examples, found 20 of population 'b'"),
        ({"train_size": 500}, "expected train_size of population 'b' .* that divides 200 examples"),
    ],
)
def test_populations_that_do_not_fit_the_task_are_refused(task, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        collect(task, tmp_path / "zoo", populations=[{"name": "a"}, {"name": "b", **values}])


RUNS = ["collect.kind=runs", "collect.runs=12", "collect.select=all"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collect.runs=1", "'collect.runs': expected greater than or equal to 2, found 1"),
        ("collect.kind=run", "'collect.kind': expected one of 'trajectory', 'runs' or 'tasks', found 'run'"),
        ("collect.burn_in=3", "unknown key 'collect.burn_in' of kind 'runs'"),
        ("collect.at=[1.0, 0.5]", "'collect.at': expected rising shares"),
        ("collect.at=[0.0]", "'collect.at.*greater than 0"),
        ("collect.populations=[{name: a}]", "expected two or more populations of different names, found .'a'."),
        ("collect.populations=[{name: a}, {name: a}]", "different names, found .'a', 'a'."),
        ("collect.populations=[{name: a}, {name: b, relable: 3}]", "unknown key 'relable'; .* 'relabel'"),
        ("collect.populations=[{name: a}, {name: b, relabel: [0, 0, 1]}]", "every label from 0 to 2 once"),
        ("collect.populations=[{name: a}, {name: b, classes: [3]}]", "two or more different classes"),
        ("collect.populations=[{name: a}, {name: b, at: [0.5, 1.0]}]", "as many rows of every run"),
    ],
)
def test_bad_settings_of_runs_are_one_line(override, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe("digits-mlp", [*RUNS, override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits-mlp", ["base_training.epochs=0"], "epochs of 1 or more with collect.kind=runs, found 0"),
        ("resnet18-head-cifar10", [], "expected pretrained weights or collect.select=all"),
        ("digits-mlp", ["collect.populations=[{name: a}, {name: b, classes: [1, 10]}]"], "found 10 in population 'b'"),
    ],
)
def test_what_runs_cannot_be_trained_on_is_found_before_training(name, overrides, message, task, tmp_path):
    recipe = load_recipe(name, ["collect.kind=runs", "collect.runs=12", *overrides])
    with pytest.raises(ValueError, match=message):
        prepare_base_model(recipe, task, tmp_path / "dataset")


def test_independent_runs_of_one_checkpoint_are_runs():
    before = ["collect.independent=true", "collect.num_checkpoints=1", "collect.runs=12", "collect.align=none"]
    recipe = load_recipe("digits-mlp", before)
    assert recipe.collect == RunsConfig(buffers=True, runs=12)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    before[-1] = "collect.align=permutation"
    with pytest.raises(ValueError, match=r"^key 'collect': expected no key 'align', .* autoencoder\.kind=functional$"):
        load_recipe("digits-mlp", before)


@pytest.mark.parametrize("align", ["none", "permutation"])
def test_networks_of_a_zoo_of_version_0_1_are_trained_on_as_they_were(align):
    collect = {"select": "all", "buffers": True, "num_checkpoints": 1, "independent": True, "runs": 4, "align": align}
    config = fine_tuning_config({"collect": collect, "base_training": BASE_TRAINING.model_dump()})
    assert (config.select, config.buffers, config.learning_rate) == ("all", True, BASE_TRAINING.learning_rate)


COMMAND = """
from pdiff_hf.cli import main
from pdiff_hf.machine import process_state

try:
    main()
finally:
    print(f"processes: {process_state().num_processes}", flush=True)
"""


POPULATED = "collect.populations=[{name: a}, {name: b, relabel: 1, label_noise: 0.2}]"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("digits-runs", ["collect.runs=120", "collect.at=[0.5, 1.0]", POPULATED]),
        ("digits-subsets", ["collect.seen=40", "collect.validation=5", "collect.unseen=5"]),
    ],
)
def test_two_processes_collect_what_one_collects(recipe, settings, tmp_path):
    settings = ["base_training.epochs=2", *settings]
    arguments = [item for setting in settings for item in ("--set", setting)]
    (tmp_path / "script.py").write_text(COMMAND)
    command = [tmp_path / "script.py", "collect", recipe, *arguments, "--out"]
    code, out = run(sys.executable, *command, tmp_path / "one")
    assert code == 0 and "processes: 1" in out, out
    code, out = launch_two(*command, tmp_path / "two")
    assert code == 0 and out.count("processes: 2") == 2, out
    one, two = ParameterDataset(tmp_path / "one"), ParameterDataset(tmp_path / "two")
    assert torch.equal(one.vectors(), two.vectors())
    assert columns_of(one) == columns_of(two)
