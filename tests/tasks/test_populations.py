from collections import Counter

import pytest
import torch

from pdiff_hf.tasks.config import CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.populations import accuracies, deal_populations, train_examples
from pdiff_hf.tasks.runs_config import PopulationConfig, RunsConfig, fine_tuning_config


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=400, val_size=100, test_size=100))


def examples(task, **values):
    return train_examples(task, PopulationConfig(name="a", **values), 32)


def test_no_population_has_every_nth_run():
    config = RunsConfig(runs=300, populations=[{"name": name} for name in "abcdef"])
    names = [population.name for population in deal_populations(config, 0)]
    assert set(Counter(names).values()) == {50}
    # Of 50 held-out rows, 8 of each by chance.
    assert all(2 < number < 16 for number in Counter(names[3::6]).values())


def test_fewer_examples_have_all_classes_and_a_seed(task):
    first, again, other = (examples(task, train_size=100, seed=seed).positions for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    labels = task.arrays("train")[1]
    assert len(first.unique()) == 100 and labels[first].bincount(minlength=10).min() >= 8


def test_noise_takes_labels_of_the_population_alone(task):
    own = examples(task, classes=[0, 1, 2, 3], relabel=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0], label_noise=0.5)
    labels = task.arrays("train")[1]
    assert torch.equal(own.positions, (labels < 4).nonzero()[:, 0])
    noisy, clean = own.labels[own.positions], 9 - labels[own.positions]
    assert set(noisy.tolist()) == {6, 7, 8, 9}
    # A quarter of the random labels are right.
    assert 0.25 < (noisy != clean).float().mean() < 0.5
    assert (own.labels[labels >= 4] == -1).all()


def test_accuracy_leaves_out_what_a_population_has_not():
    predictions = torch.tensor([[1, 2, -1, 0], [1, 2, 3, 0]])
    labels = torch.tensor([[1, 0, -1, -1], [1, 2, 3, 0]])
    assert accuracies(predictions, labels).tolist() == [0.5, 1.0]


def test_networks_are_fine_tuned_as_they_were_trained():
    training = {"learning_rate": 0.02, "weight_decay": 0.1, "train_batch_size": 16, "epochs": 3}
    runs = RunsConfig(runs=3, buffers=True).model_dump(mode="json")
    found = fine_tuning_config({"collect": runs, "base_training": training})
    assert (found.learning_rate, found.weight_decay, found.train_batch_size) == (0.02, 0.1, 16)
    assert found.select == "all" and found.buffers
    before = {"independent": True, "num_checkpoints": 1, "runs": 3, "select": "all", "buffers": True}
    assert fine_tuning_config({"collect": before, "base_training": training}) == found
    trajectory = CollectConfig(every=3)
    assert fine_tuning_config({"collect": trajectory.model_dump(mode="json")}) == trajectory
    assert fine_tuning_config({}) is None
    assert fine_tuning_config({"collect": runs, "base_training": training, "populations": {}}) is None
