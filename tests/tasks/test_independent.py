import copy

import pytest
import torch
from torch import nn

from pdiff_hf.networks import convnet3, mlp3
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.zoo import _train_stacked, networks_at_once, train_networks

CONFIG = BaseTrainingConfig(epochs=2, learning_rate=5e-3, train_batch_size=32)


def norm_net():
    # A bias before BatchNorm has no gradient but rounding.
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def dropout_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))


def frozen_net():
    network = mlp3()
    network[1].requires_grad_(False)
    return network


MODELS = {"mlp": mlp3, "convnet": lambda: convnet3(channels=(4, 4, 4)), "norms": norm_net, "frozen": frozen_net}


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


def initialised(make, seeds):
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(make())
    return networks


def trained_alone(task, networks, seeds, config):
    for network, seed in zip(networks, seeds, strict=True):
        train_base_model(task, network, config.model_copy(update={"seed": seed}), device="cpu", progress=False)
    return networks


@pytest.mark.parametrize("name", MODELS)
def test_networks_trained_at_once_are_those_trained_alone(task, name):
    seeds = (3, 4, 7)
    networks = initialised(MODELS[name], seeds)
    alone = trained_alone(task, copy.deepcopy(networks), seeds, CONFIG)
    assert _train_stacked(task, networks, seeds, CONFIG, torch.device("cpu"))
    for left, right in zip(networks, alone, strict=True):
        assert not left.training
        for key, tensor in right.state_dict().items():
            # Rounding, which AdamW's normalisation may enlarge; units of networks differ by 0.1 and more.
            torch.testing.assert_close(left.state_dict()[key], tensor, atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize("num", [1, 3])
def test_what_cannot_be_trained_at_once_is_trained_alone(task, num):
    seeds = range(num)
    networks = initialised(dropout_net, seeds)
    alone = trained_alone(task, copy.deepcopy(networks), seeds, CONFIG)
    train_networks(task, networks, seeds, CONFIG, "cpu")
    for left, right in zip(networks, alone, strict=True):
        for key, tensor in right.state_dict().items():
            assert torch.equal(left.state_dict()[key], tensor)


def test_diverged_network_is_named(task):
    networks = initialised(mlp3, (5, 6))
    config = CONFIG.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"seed 5; lower base_training\.learning_rate"):
        train_networks(task, networks, (5, 6), config, "cpu")


def test_large_networks_are_trained_one_at_a_time():
    assert networks_at_once(mlp3()) == 50
    assert networks_at_once(mlp3(64, (1024, 1024))) == 1
