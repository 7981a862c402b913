"""Base training, collection and zoos on an accelerator: nobody waits for it, the networks are those of the CPU."""

import copy

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._C._functorch import get_unwrapped, is_batchedtensor

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks import zoo
from pdiff_hf.tasks.base_training import train_base_model, train_steps
from pdiff_hf.tasks.collect_runs import RunCollector, RunsCollector
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.runs_config import RunsConfig
from pdiff_hf.tasks.train_selection import share_prefix, train_selection

CONFIG = BaseTrainingConfig(epochs=2, learning_rate=5e-3, train_batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 56), ("test", 10)):
        images = [Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)) for _ in range(number)]
        rows = {"image": images, "label": [index % 2 for index in range(number)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def task(folder):
    return ImageClassification(ImageClassificationConfig(dataset=str(folder), val_size=8, in_chans=1))


def make_network(seed=0):
    torch.manual_seed(seed)
    return mlp3(64, (6,), 2)


def collector(task, kind, network, config, **options):
    layout = ParameterLayout.from_model(network, config.select, config.buffers)
    return kind(task, make_network, network, CONFIG, config, layout, 0, **options)


@pytest.mark.parametrize("place", ["kept", "loaded"])
def test_pixels_on_an_accelerator_are_the_images_of_the_cpu(pretended, task, folder, place, monkeypatch):
    expected = list(task.batches("train", 8, seed=1, epoch=2))
    if place == "loaded":
        monkeypatch.setattr("pdiff_hf.tasks.task.free_memory", lambda device: 0)
    examples = task.examples("train", "pretend")
    assert examples.is_kept == (place == "kept")
    for _ in range(2):
        pretended.clear()
        batches = examples.batches(8, seed=1, epoch=2)
        found = [(examples.inputs(*batch), examples.labels[batch[0]]) for batch in batches]
    # The order of an epoch is one.
    assert pretended.to_device.total() == (1 if place == "kept" else 1 + len(found))
    assert pretended.waits.total() == 0
    for (inputs, labels), (images, numbers) in zip(found, expected, strict=True):
        assert inputs.device.type == "pretend"
        assert torch.equal(inputs.cpu(), images) and torch.equal(labels.cpu(), numbers)


def waits_of_steps(pretended, steps, first):
    """Waits of every step from the first that is counted on."""
    found = []
    for number, _ in enumerate(steps):
        if number >= first:
            found.append(pretended.waits.total())
        pretended.clear()
    return found


def test_base_training_waits_for_nothing_within_an_epoch(pretended, task):
    device, network = torch.device("pretend"), make_network().to("pretend")
    examples = task.examples("train", device)
    steps = train_steps(
        task,
        network.parameters(),
        lambda index: nn.functional.cross_entropy(network(examples.inputs(index)), examples.labels[index]),
        examples.batches(8),
        CONFIG,
        device,
    )
    assert waits_of_steps(pretended, steps, 1) == [0] * 5


def test_base_model_trained_on_an_accelerator_is_that_of_the_cpu(pretended, task):
    networks = make_network(), make_network()
    expected, found = (
        train_base_model(task, network, CONFIG, device, progress=False)
        for network, device in zip(networks, ("cpu", "pretend"), strict=True)
    )
    assert found["train_loss"] == expected["train_loss"]
    assert (found["val_accuracy"], found["test_accuracy"]) == (expected["val_accuracy"], expected["test_accuracy"])
    for left, right in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(right.cpu(), left)


@pytest.mark.parametrize("select", ["head", "all"])
def test_collection_is_a_copy_a_checkpoint_and_no_wait(pretended, task, tmp_path, select):
    config = CollectConfig(select=select, num_checkpoints=12, train_batch_size=8)
    found = {}
    for device in ("cpu", "pretend"):
        network = make_network().to(device)
        waits, copies = [], []

        def advance(number, waits=waits, copies=copies):
            waits.append(pretended.waits.total())
            copies.append(pretended.to_host.total())
            pretended.clear()

        collector(task, RunCollector, network, config).collect(range(1), tmp_path / device, advance)
        found[device] = ParameterDataset(tmp_path / device)
    assert torch.equal(found["pretend"].vectors(), found["cpu"].vectors())
    assert found["pretend"].rows.with_format(None)[:] == found["cpu"].rows.with_format(None)[:]
    # The first checkpoint is written at once; a copy belongs to every other one.
    assert waits[1:] == [0] * 11 and copies[1:] == [1] * 11


def test_zoo_is_a_copy_a_stop_and_waits_for_losses_alone(pretended, task, tmp_path):
    config = RunsConfig(runs=5, at=[0.5, 1.0])
    found = {}
    for device in ("cpu", "pretend"):
        runs = collector(task, RunsCollector, make_network().to(device), config)
        assert runs.runs_at_once(1) == (50 if device == "cpu" else 5)
        pretended.clear()
        runs.collect(range(5), tmp_path / device, lambda number: None)
        found[device] = ParameterDataset(tmp_path / device)
    torch.testing.assert_close(found["pretend"].vectors(), found["cpu"].vectors(), rtol=1e-4, atol=1e-5)
    # Two stops, which are the ends of the two epochs.
    assert pretended.to_host.total() == 2
    # Both epochs wait for their losses, and the start for four tensors and the labels.
    assert sum(number for line, number in pretended.waits.items() if "zoo" in line) == 2 + 4 + 2


def test_orders_are_drawn_a_bit_at_a_time_where_they_are_long(task, monkeypatch):
    def train():
        vectors = {}

        def keep(places, step, tensors, losses):
            vectors[step] = {name: tensor.clone() for name, tensor in tensors.items()}

        starts = [dict(make_network(seed).named_parameters()) for seed in range(3)]
        zoo.train_networks(task, make_network(), starts, range(3), CONFIG, keep, stops={5, 12})
        return vectors

    expected = train()
    monkeypatch.setattr(zoo, "ORDER_BYTES", 8 * 3 * 8 * 2)
    found = train()
    assert all(torch.equal(found[step][name], expected[step][name]) for step in (5, 12) for name in expected[5])


class Greedy(nn.Module):
    """A network of which the memory holds two."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 2)
        self.together = []

    def forward(self, images):
        weight = self.fc.weight
        number = len(get_unwrapped(weight)) if is_batchedtensor(weight) else 1
        self.together.append(number)
        if number > 2:
            raise torch.OutOfMemoryError("too many networks")
        return self.fc(images.flatten(1))


def test_what_does_not_fit_together_is_trained_in_halves(task):
    networks = []
    for seed in range(5):
        torch.manual_seed(seed)
        networks.append(Greedy())
    found = {}

    def keep(places, step, tensors, losses):
        found.update({place: tensors["fc.weight"][row].clone() for row, place in enumerate(places)})

    starts = [dict(network.named_parameters()) for network in networks]
    shared = copy.deepcopy(networks[0])
    zoo.train_networks(task, shared, starts, range(5), CONFIG, keep)
    assert list(dict.fromkeys(shared.together)) == [5, 3, 2, 1]
    for seed, network in enumerate(networks):
        train_base_model(task, network, CONFIG.model_copy(update={"seed": seed}), "cpu", progress=False)
        torch.testing.assert_close(found[seed], network.fc.weight, rtol=1e-4, atol=1e-5)


def test_zoos_take_half_of_the_free_memory_of_an_accelerator(pretended, monkeypatch):
    monkeypatch.setattr("pdiff_hf.tasks.zoo.free_memory", lambda device: 2**37)
    device = torch.device("pretend")
    batch_bytes = 128 * 784 * 4
    assert zoo.networks_at_once(54_000, batch_bytes, device) > 1_000
    # A network is 32 bytes a value and 16 batches.
    assert zoo.networks_at_once(54_000, 2**30, device) == 2**36 // (32 * 54_000 + 2**34)
    # ResNet-18, ViT-Base.
    assert zoo.networks_at_once(11_000_000, batch_bytes, device) == 6
    assert zoo.networks_at_once(86_000_000, batch_bytes, device) == 1


def test_selection_is_trained_on_shared_activations_without_waiting(pretended, task):
    network = make_network().to("pretend")
    layout, config = ParameterLayout.from_model(network, "head"), CollectConfig(select="head", train_batch_size=8)
    prefix = share_prefix(task, network, layout, config, [(0, 0)])
    assert prefix is not None
    steps = train_selection(task, network, layout, config, prefix=prefix)
    assert waits_of_steps(pretended, (next(steps) for _ in range(12)), 1) == [0] * 11
