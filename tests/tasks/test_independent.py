import copy
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import convnet3, mlp3
from pdiff_hf.tasks import zoo
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.train_selection import share_prefix
from pdiff_hf.tasks.zoo import networks_at_once, train_networks

CONFIG = BaseTrainingConfig(epochs=2, learning_rate=5e-3, train_batch_size=32)


def norm_net():
    # A bias before BatchNorm has no gradient but rounding.
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


class Branching(nn.Module):
    """A network whose way depends on values, and so without a batching rule."""

    def __init__(self):
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, images):
        logits = self.fc(self.flat(images))
        return logits if logits.sum() > 0 else 2 * logits


def dropout_net(rate=0.5):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(rate), nn.Linear(32, 10))


def frozen_net():
    network = mlp3()
    network[1].requires_grad_(False)
    return network


MODELS = {"mlp": mlp3, "convnet": lambda: convnet3(channels=(4, 4, 4)), "norms": norm_net, "frozen": frozen_net}


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


@pytest.fixture(scope="module")
def images_task(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 40), ("test", 10)):
        images = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(number)]
        rows = {"image": images, "label": [index % 2 for index in range(number)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return ImageClassification(ImageClassificationConfig(dataset=str(folder), val_size=8, augment="timm"))


def initialised(make, seeds):
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(make())
    return networks


def state_of(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def trained_alone(task, networks, seeds, config):
    trained = copy.deepcopy(networks)
    for network, seed in zip(trained, seeds, strict=True):
        train_base_model(task, network, config.model_copy(update={"seed": seed}), device="cpu", progress=False)
    return [state_of(network) for network in trained]


def trained_together(task, networks, seeds, config=CONFIG, **options):
    """States after the last step, and how many networks were computed together."""
    found, network = {}, copy.deepcopy(networks[0])

    def keep(places, step, tensors, losses):
        for row, place in enumerate(places):
            found[place] = {name: tensor[row].clone() for name, tensor in tensors.items()}

    train_networks(task, network, [state_of(n) for n in networks], seeds, config, keep, **options)
    assert not network.training
    return [found[place] for place in range(len(networks))]


def is_stacked(monkeypatch):
    """Notes of every loss whether it is of several networks; convolutions are stacked as on an accelerator."""
    monkeypatch.setattr(zoo, "_is_faster_stacked", lambda network, start: True)
    calls, vmap = [], zoo.vmap
    monkeypatch.setattr(zoo, "vmap", lambda *args, **kwargs: calls.append(True) or vmap(*args, **kwargs))
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_networks_trained_at_once_are_those_trained_alone(task, name, monkeypatch):
    seeds, stacked = (3, 4, 7), is_stacked(monkeypatch)
    networks = initialised(MODELS[name], seeds)
    alone = trained_alone(task, networks, seeds, CONFIG)
    for left, right in zip(trained_together(task, networks, seeds), alone, strict=True):
        for key, tensor in right.items():
            # Rounding, which AdamW's normalisation may enlarge; units of networks differ by 0.1 and more.
            torch.testing.assert_close(left[key], tensor, atol=1e-4, rtol=1e-3, msg=key)
    assert stacked


@pytest.mark.parametrize(("make", "num"), [(Branching, 3), (dropout_net, 1), (MODELS["convnet"], 2)])
def test_what_cannot_be_trained_at_once_is_trained_alone(task, make, num):
    networks = initialised(make, range(num))
    alone = trained_alone(task, networks, range(num), CONFIG)
    for left, right in zip(trained_together(task, networks, range(num)), alone, strict=True):
        for key, tensor in right.items():
            assert torch.equal(left[key], tensor)


def test_dropout_is_drawn_for_every_network_and_again_the_same(task, monkeypatch):
    networks, stacked = initialised(dropout_net, (1,)) * 3, is_stacked(monkeypatch)
    seeds = (5, 5, 5)
    states = trained_together(task, networks, seeds)
    assert stacked
    for key in states[0]:
        # The same start and order of images, so that dropout alone is different.
        assert not torch.equal(states[0][key], states[1][key])
    again = trained_together(task, networks, seeds)
    assert all(torch.equal(left[key], right[key]) for left, right in zip(states, again, strict=True) for key in left)
    still = trained_together(task, initialised(lambda: dropout_net(0.0), (1,)) * 3, seeds)
    assert all(torch.equal(still[0][key], still[1][key]) for key in still[0])


def test_stops_are_steps_on_the_way(task):
    seen, network = {}, mlp3()

    def keep(places, step, tensors, losses):
        for row, place in enumerate(places):
            seen[place, step] = (tensors["1.weight"][row].clone(), losses[row])

    starts = [state_of(n) for n in initialised(mlp3, (1, 2))]
    train_networks(task, network, starts, (1, 2), CONFIG, keep, stops={1, 5, 12})
    assert sorted(seen) == [(0, 1), (0, 5), (0, 12), (1, 1), (1, 5), (1, 12)]
    # The first step of AdamW moves every value by the learning rate, and the loss is that before it.
    moved = (seen[0, 1][0] - starts[0]["1.weight"]).abs()
    assert moved.max() < 1.1 * CONFIG.learning_rate
    (images, labels), index = task.arrays("train"), task.batch_indices("train", 32, 1)[0]
    first = nn.functional.cross_entropy(initialised(mlp3, (1,))[0](images[index]), labels[index])
    assert seen[0, 1][1] == pytest.approx(first.item(), abs=1e-5)
    assert torch.equal(seen[0, 12][0], trained_together(task, initialised(mlp3, (1, 2)), (1, 2))[0]["1.weight"])


def test_augmented_images_are_trained_on_at_once(images_task, monkeypatch):
    stacked = is_stacked(monkeypatch)
    networks = initialised(lambda: mlp3(192, (8,), 2), (1, 2))
    config = CONFIG.model_copy(update={"train_batch_size": 8})
    alone = trained_alone(images_task, networks, (1, 2), config)
    for left, right in zip(trained_together(images_task, networks, (1, 2), config), alone, strict=True):
        torch.testing.assert_close(left["1.weight"], right["1.weight"], atol=1e-4, rtol=1e-3)
    assert stacked


@pytest.mark.parametrize("is_cached", [True, False])
def test_heads_on_cached_features_are_those_of_full_training(task, is_cached, monkeypatch):
    stacked = is_stacked(monkeypatch)
    torch.manual_seed(0)
    base = norm_net()
    layout = ParameterLayout.from_model(base, ["4.*"])
    networks = [copy.deepcopy(base) for _ in range(3)]
    for seed, network in enumerate(networks):
        torch.manual_seed(seed)
        network[4].reset_parameters()
    starts = [{name: state_of(network)[name] for name in layout.names} for network in networks]
    found, config = {}, CollectConfig(select=["4.*"], num_checkpoints=12, every=1, train_batch_size=32)

    def keep(places, step, tensors, losses):
        for row, place in enumerate(places):
            found[place] = layout.flatten({name: tensor[row] for name, tensor in tensors.items()})

    prefix = share_prefix(task, base, layout, CONFIG) if is_cached else None
    train_networks(task, copy.deepcopy(base), starts, (3, 4, 7), CONFIG, keep, layout=layout, prefix=prefix)
    assert bool(stacked) == is_cached
    for place, (network, seed) in enumerate(zip(networks, (3, 4, 7), strict=True)):
        layout.freeze_rest(network)
        head = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(head, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
        for step in range(config.num_steps):
            optimizer.param_groups[0]["lr"] = CONFIG.learning_rate * (1 + math.cos(math.pi * step / 12)) / 2
            index = task.batch_indices("train", 32, seed, step // 6)[step % 6]
            images, labels = task.arrays("train")
            nn.functional.cross_entropy(network(images[index]), labels[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(found[place], layout.flatten(network), atol=1e-4, rtol=1e-3)


def test_diverged_network_is_named(task):
    networks = initialised(mlp3, (5, 6))
    config = CONFIG.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"seed 5; lower base_training\.learning_rate"):
        trained_together(task, networks, (5, 6), config)


def test_large_networks_are_trained_one_at_a_time():
    assert networks_at_once(3_466) == 50
    assert networks_at_once(2**20) == networks_at_once(2**23) == 1
    # A batch of 128 photographs.
    assert networks_at_once(3_466, 128 * 3 * 224**2 * 4) == 3
