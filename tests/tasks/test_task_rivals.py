"""Networks that learn from the labels of tasks, beside which generated ones are judged."""

import pytest
import torch

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect
from pdiff_hf.tasks.conditions import task_labels
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.tasks.task_rivals import TaskTraining, multi_task_accuracies
from pdiff_hf.tasks.unseen_tasks import open_task_networks, places_of


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals") / "dataset"
    settings = ["collect.seen=24", "collect.validation=1", "collect.unseen=3", "base_training.epochs=12"]
    settings += ["task.train_size=900", "task.val_size=200", "task.test_size=300"]
    collect(load_recipe("digits-subsets", settings), folder)
    dataset = ParameterDataset(folder)
    task = open_task(dataset)
    return dataset, task, open_task_networks(dataset, "unseen", task, "test")


def training(dataset, task, role="unseen", start=None):
    labels, _ = task_labels(ParameterDataset(dataset.folder, role) if role else dataset, task, "train")
    mean = dataset.vectors()[:].mean(0)
    return TaskTraining(dataset, task, torch.stack([*labels.values()]), mean if start is None else start)


def test_fine_tuned_for_as_long_as_a_training_it_is_one(collected):
    dataset, task, unseen = collected
    rival = training(dataset, task)
    networks, seconds = rival.fine_tuned(10 * rival.seconds)
    assert seconds == pytest.approx(rival.seconds) and networks.shape == unseen.vectors.shape
    accuracy = unseen.predict(networks).accuracy.mean().item()
    oracle = unseen.mean_by_task(unseen.predict(unseen.vectors, unseen.rows).accuracy, unseen.rows).mean().item()
    assert accuracy == pytest.approx(oracle, abs=0.05) and accuracy > unseen.majority.mean() + 0.15
    shorter, seconds = rival.fine_tuned(0.0)
    assert seconds == pytest.approx(rival.seconds / 12)
    assert unseen.predict(shorter).accuracy.mean() < accuracy


def test_more_shots_are_better_and_few_examples_are_all_that_is_seen(collected):
    dataset, task, unseen = collected
    rival = training(dataset, task)
    few, more = (unseen.predict(rival.few_shot(shots)).accuracy.mean().item() for shots in (1, 20))
    assert more > few + 0.05
    # Labels of all other examples play no part.
    other = training(dataset, task)
    classes = task.labels("train")
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    taken = torch.cat([order[classes[order] == label][:1] for label in classes.unique()])
    rest = torch.ones(len(classes), dtype=torch.bool)
    rest[taken] = False
    other._labels[:, rest] = 1 - other._labels[:, rest]
    torch.testing.assert_close(other.few_shot(1), rival.few_shot(1))


def test_a_hypernetwork_learns_from_the_labels_of_seen_tasks_alone(collected):
    dataset, task, unseen = collected
    seen = open_task_networks(dataset, "seen", task)
    write = training(dataset, task, "").hypernetwork(seen.distinct, seen.vectors[:].std(0), 300)
    right = unseen.predict(write(unseen.distinct)).accuracy.mean()
    wrong = unseen.predict(write(unseen.distinct.roll(1, 0))).accuracy.mean()
    assert right > unseen.majority.mean() + 0.15 and wrong < right - 0.2


def test_one_network_for_all_classes_answers_every_task(collected):
    dataset, task, unseen = collected
    found = multi_task_accuracies(dataset, task, unseen.distinct, unseen.evaluator.targets.cpu())
    assert found.shape == (6,) and found.min() > 0.85
    # A task and its complement have the same answers, but for ties.
    pairs = (unseen.distinct[:, None] != unseen.distinct).all(2).int().argmax(1)
    torch.testing.assert_close(found, found[pairs], atol=0.01, rtol=0)


def test_networks_for_other_tasks_or_fewer_are_refused():
    wanted = torch.eye(3)
    assert places_of(wanted[[2, 0, 1, 2, 0, 1]], wanted).tolist() == [2, 0, 1, 2, 0, 1]
    for given in (torch.ones(3, 3), wanted[[0, 0, 1, 2]], wanted[:2]):
        with pytest.raises(ValueError, match="for each of the 3 unseen tasks"):
            places_of(given, wanted)
