import pytest
import torch
from torch import nn

from pdiff_hf.networks import convnet3, mlp3
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=300, val_size=100, test_size=100))


def train(task, seed=0, make=mlp3, **values):
    torch.manual_seed(0)
    model = make()
    values = {"epochs": 3, "learning_rate": 5e-3, "train_batch_size": 32, **values}
    result = train_base_model(task, model, BaseTrainingConfig(seed=seed, **values), device="cpu", progress=False)
    return model, result


def test_training_learns_and_reports_fractions(task):
    model, result = train(task, epochs=40)
    assert len(result["train_loss"]) == 40
    assert result["train_loss"][-1] < 0.2 * result["train_loss"][0]
    assert 0.8 < result["val_accuracy"] <= 1 and 0.8 < result["test_accuracy"] <= 1
    images, labels = task.arrays("test")
    assert result["test_accuracy"] == (model(images).argmax(-1) == labels).float().mean()
    assert not model.training


def test_same_seed_same_weights_also_with_dropout(task):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))

    first, again, other = (train(task, seed, make)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_no_epochs_leave_the_model_alone(task):
    model, result = train(task, epochs=0)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), mlp3().parameters(), strict=True))
    assert result["train_loss"] == []


def test_frozen_parameters_stay(task):
    def make():
        model = convnet3(channels=(4, 4, 4))
        model[0].requires_grad_(False)
        return model

    torch.manual_seed(0)
    before = make().state_dict()
    after = train(task, make=make)[0].state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["3.weight"], after["3.weight"])


def test_bf16_keeps_float32_weights(task):
    model, result = train(task, mixed_precision="bf16")
    assert next(model.parameters()).dtype == torch.float32
    assert result["train_loss"][-1] < result["train_loss"][0]


def test_wrong_number_of_classes_is_named(task):
    with pytest.raises(ValueError, match=r"expected logits \(32, 10\).*found \(32, 7\); set num_classes"):
        train(task, make=lambda: mlp3(num_classes=7))


def test_diverged_training_stops(task):
    with pytest.raises(ValueError, match=r"expected a finite loss.*lower base_training.learning_rate"):
        train(task, learning_rate=1e30)
