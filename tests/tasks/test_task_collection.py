"""Collections of many tasks: `collect.kind: tasks`."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from factories import Killed, kill_collection
from pdiff_hf.base_model import BaseModel
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.runs.recipe import fit_recipe, load_recipe
from pdiff_hf.runs.stages import planned_rows, prepare_base_model
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.collect import collect_checkpoints
from pdiff_hf.tasks.collect_runs import build_with_seed
from pdiff_hf.tasks.conditions import row_subsets, subset_for, task_labels
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.evaluators import make_task_evaluator
from pdiff_hf.tasks.families import complement, task_name
from pdiff_hf.tasks.families_config import TasksConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.runs_config import fine_tuning_config
from pdiff_hf.text_encoder import TextEncoder
from small_encoders import WORDS, save_encoder

BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", hidden=[8], num_classes=2)
BASE_TRAINING = BaseTrainingConfig(epochs=3, learning_rate=3e-2, train_batch_size=32, seed=3)
FEW = {"num_classes": 10, "seen": 3, "validation": 1, "unseen": 2}


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


def collect(task, folder, **values):
    torch.manual_seed(100)
    config = TasksConfig(**FEW | values)
    found = collect_checkpoints(task, BASE, BASE.build(), BASE_TRAINING, config, folder, progress=False)
    return config.tasks, found


def columns_of(dataset):
    return dataset.rows.remove_columns("parameters").with_format(None)[:]


def test_every_network_is_trained_and_judged_by_the_labels_of_its_own_task(task, tmp_path):
    tasks, found = collect(task, tmp_path / "zoo")
    images, digits = task.arrays("test")
    assert found["num_checkpoints"] == 6 and found["num_validation"] == 2 and found["num_unseen"] == 4
    for config, own in (("default", tasks.seen), ("validation", tasks.validation), ("unseen", tasks.unseen)):
        dataset = ParameterDataset(tmp_path / "zoo", config)
        columns = columns_of(dataset)
        assert columns["task"] == [task_name(subset, task.class_names) for subset in own]
        assert dataset.condition_spec.names == tuple("0123456789")
        for row, subset in enumerate(own):
            assert dataset.conditions()[row].nonzero()[:, 0].tolist() == list(subset)
            network = dataset.base_model.build()
            dataset.layout.load_into(network, dataset.vectors(rows=[row])[0])
            labels = torch.isin(digits, torch.tensor(subset)).long()
            with torch.no_grad():
                right = (network(images).argmax(-1) == labels).float().mean().item()
            assert columns["test_accuracy"][row] == pytest.approx(right, abs=1e-6)
    # Networks that have learned nothing are right on half of the examples of such tasks.
    assert found["test_accuracy"] > 0.65


def test_no_dataset_of_a_generator_holds_an_unseen_task_or_its_complement(task, tmp_path):
    collect(task, tmp_path / "zoo")
    seen = {tuple(row.nonzero()[:, 0].tolist()) for row in ParameterDataset(tmp_path / "zoo").conditions()}
    for config in ("validation", "unseen"):
        dataset = ParameterDataset(tmp_path / "zoo", config)
        assert dataset.metadata["tasks"] == {
            "family": "class_subsets",
            "split": "groups",
            "role": config,
            "num_seen": 6,
            "num_validation": 2,
            "num_unseen": 4,
        }
        own = {tuple(row.nonzero()[:, 0].tolist()) for row in dataset.conditions()}
        assert not seen & (own | {complement(subset, 10) for subset in own})


def test_a_run_is_a_base_training_on_the_labels_of_its_task(task, tmp_path):
    tasks, _ = collect(task, tmp_path / "zoo")
    binary = ImageClassification(task.config)
    for split in ("train", "val", "test"):
        binary._labels[split] = torch.isin(task.labels(split), torch.tensor(tasks.seen[0])).long()
    binary.class_names = ["no", "yes"]
    network = build_with_seed(BASE.build, 3)
    train_base_model(binary, network, BASE_TRAINING, device="cpu", progress=False)
    dataset = ParameterDataset(tmp_path / "zoo")
    torch.testing.assert_close(dataset.vectors()[0], dataset.layout.flatten(network), atol=1e-4, rtol=1e-3)


def test_runs_of_a_task_differ_by_their_order_or_by_their_start_too(task, tmp_path):
    collect(task, tmp_path / "same", runs_per_task=2)
    tasks, _ = collect(task, tmp_path / "own", runs_per_task=2, same_start=False)
    same, own = (columns_of(ParameterDataset(tmp_path / name)) for name in ("same", "own"))
    assert same["task"] == own["task"] == [task_name(t, task.class_names) for t in tasks.seen] * 2
    assert same["seed"] == [3] * 6 + [4] * 6 and own["seed"] == [3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 19, 20]
    vectors = ParameterDataset(tmp_path / "same").vectors()
    assert not torch.equal(vectors[:6], vectors[6:])
    start = ParameterDataset(tmp_path / "same").layout.flatten(build_with_seed(BASE.build, 3))
    others = ParameterDataset(tmp_path / "own").vectors()
    # From one start, networks end near it.
    assert (vectors - start).norm(dim=1).max() < (others[1:] - start).norm(dim=1).min()


def test_conditions_may_have_metrics_beside_the_subset(task, tmp_path):
    tasks, found = collect(task, tmp_path / "zoo", metric=["val_accuracy"], at=[0.5, 1.0])
    assert found["num_checkpoints"] == 12 and found["num_unseen"] == 8
    dataset = ParameterDataset(tmp_path / "zoo")
    spec, columns = dataset.condition_spec, columns_of(dataset)
    assert [part.kind for part, _ in spec.placed] == ["classes", "metric"]
    told = [spec.describe(row) for row in dataset.conditions().tolist()]
    assert ["+".join(row["classes"]) for row in told] == columns["task"]
    assert [row["metric"]["val_accuracy"] for row in told] == pytest.approx(columns["val_accuracy"])
    assert columns["task"][::2] == columns["task"][1::2] == [task_name(own, task.class_names) for own in tasks.seen]
    # Halfway, and at the end.
    assert len({*columns["step"]}) == 2 and columns["epoch"][:2] == [pytest.approx(1.5, abs=0.3), 3]
    evaluator = make_task_evaluator(dataset, "val", task)
    assert len(evaluator.targets) == 6
    accuracies = evaluator.predict(dataset.vectors(), population=evaluator.rows).accuracy
    torch.testing.assert_close(accuracies.cpu(), torch.tensor(columns["val_accuracy"]).float(), atol=1e-5, rtol=0)


def test_conditions_may_be_calibration_errors_by_the_labels_of_the_own_task(task, tmp_path):
    tasks, _ = collect(task, tmp_path / "zoo", metric=["val_ece"])
    images, digits = task.arrays("val")
    for config, own in (("default", tasks.seen), ("unseen", tasks.unseen)):
        dataset = ParameterDataset(tmp_path / "zoo", config)
        columns, told = columns_of(dataset), dataset.conditions().tolist()
        for row, subset in enumerate(own):
            network = dataset.base_model.build()
            dataset.layout.load_into(network, dataset.vectors(rows=[row])[0])
            labels = torch.isin(digits, torch.tensor(subset)).long()
            with torch.no_grad():
                probabilities = network(images).softmax(-1)
            ece = multiclass_calibration_error(probabilities, labels, num_classes=2, n_bins=15, norm="l1").item()
            assert columns["val_ece"][row] == pytest.approx(ece, abs=1e-5) and ece > 0
            assert dataset.condition_spec.describe(told[row])["metric"] == {"val_ece": pytest.approx(ece, abs=1e-5)}


def test_conditions_may_be_sentences_about_the_subset(task, tmp_path):
    encoder = save_encoder(tmp_path / "encoder", (*WORDS, *map(str, range(10))))
    given = {"condition": "sentence", "encoder": encoder, "sentence": "a dog and {classes}."}
    tasks, _ = collect(task, tmp_path / "sentences", **given)
    collect(task, tmp_path / "classes")
    for role, own in (("default", tasks.seen), ("unseen", tasks.unseen)):
        found, expected = (ParameterDataset(tmp_path / name, role) for name in ("sentences", "classes"))
        assert torch.equal(found.vectors(), expected.vectors())
        assert found.condition_spec == ConditionSpec("text", 8, encoder=encoder)
        names = [str(place) for place in own[0]]
        listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        assert found.condition_texts[0] == f"a dog and {listed}."
        torch.testing.assert_close(found.conditions(), TextEncoder(encoder)(found.condition_texts))
        # The labels of a row's task are those of its subset, whatever a generator is told.
        told, meant = (row_subsets(dataset) for dataset in (found, expected))
        assert told[0] == meant[0] and torch.equal(told[1], meant[1])
        (ours, _), (theirs, _) = (task_labels(dataset, task, "test") for dataset in (found, expected))
        assert [*ours] == [*theirs] and torch.equal(torch.stack([*ours.values()]), torch.stack([*theirs.values()]))
    condition = {"text": found.condition_texts[1]}
    assert torch.equal(subset_for(ParameterDataset(tmp_path / "sentences"), condition), meant[1][1])
    with pytest.raises(ValueError, match="expected a sentence of a task of the collection, found 'cats'"):
        subset_for(found, {"text": "cats"})
    with pytest.raises(ValueError, match="expected a text encoder in a folder or on the Hub, found none under"):
        collect(task, tmp_path / "none", **{**given, "encoder": str(tmp_path)})


def test_killed_collection_goes_on_with_the_same_bits(task, tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.tasks.zoo.MAX_NETWORKS", 5)
    collect(task, tmp_path / "whole")
    made = kill_collection(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(task, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
    collect(task, tmp_path / "zoo")
    assert [len(runs) for runs in made] == [5, 5, 5, 2]
    for config in ("default", "unseen"):
        whole, resumed = (ParameterDataset(tmp_path / name, config) for name in ("whole", "zoo"))
        assert torch.equal(whole.vectors(), resumed.vectors()) and columns_of(whole) == columns_of(resumed)


def test_recipe_counts_the_rows_of_seen_tasks():
    recipe = load_recipe("digits-subsets", ["collect.seen=16"])
    assert recipe.collect.runs == 32 + 42 + 100 and len(planned_rows(recipe).runs) == 32
    assert fit_recipe(recipe)[0].autoencoder.holdout_every == recipe.autoencoder.holdout_every


@pytest.mark.parametrize(
    "given, message",
    [
        ("collect.seen=500", r"expected 511 groups at most, found 50 \+ 21 \+ 500 that are wanted; lower collect"),
        ("collect.split=some", "'collect.split': expected 'groups', 'leaky' or 'compositional', found 'some'"),
        ("collect.runs=3", "unknown key 'collect.runs'"),
        ("collect.condition=sentence", "expected the encoder of sentences, found none; set collect.encoder"),
        (
            "collect.condition=sentence collect.encoder=x collect.sentence=Is",
            "expected {classes} once in the sentence of a task, found 'Is'; correct collect.sentence",
        ),
        (
            "collect.condition=sentence collect.encoder=x collect.metric=[val_accuracy]",
            "expected sentences alone, which are no part of other conditions, found collect.metric",
        ),
    ],
)
def test_bad_settings_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe("digits-subsets", given.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, message",
    [
        ("collect.num_classes=9", "expected num_classes=10 of collect, the classes of digits, found 9"),
        ("base_model.kwargs.num_classes=10", r"a base model for 2 classes, found that .* gives \(10,\) logits"),
        ("base_training.epochs=0", "epochs of 1 or more with collect.kind=tasks, found 0"),
    ],
)
def test_what_does_not_fit_the_tasks_is_one_line(given, message, tmp_path):
    recipe = load_recipe("digits-subsets", ["collect.seen=16", "collect.unseen=2", "collect.validation=1", given])
    with pytest.raises(ValueError, match=message) as error:
        prepare_base_model(recipe, load_task(recipe.task), tmp_path / "new")
    assert "\n" not in str(error.value)


def test_networks_of_many_tasks_are_not_fine_tuned():
    assert fine_tuning_config({"collect": {"kind": "runs", "runs": 2}, "base_training": {}, "tasks": {}}) is None
