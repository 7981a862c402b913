"""Steps of base training, zoos and collection as CUDA graphs: all but the recording is tested without CUDA."""

import pytest
import torch
from torch import nn

from pdiff_hf import graphs
from pdiff_hf.graphs import GraphedUpdate, StaticStep
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from pdiff_hf.tasks import base_training, train_selection, zoo
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig

# Four steps of three epochs.
CONFIG = BaseTrainingConfig(epochs=3, learning_rate=5e-3, train_batch_size=32)


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=128, val_size=100, test_size=100))


@pytest.fixture
def static_steps(pretended, monkeypatch):
    """From the second one on, steps are done as a graph replays them; `(before, after)` of what each has counted."""
    steps = []

    def graphed(update, optimizer):
        known = []

        def advance(*batch):
            if not known:
                known.append(StaticStep(update, optimizer, batch))
                return update(*batch)
            known[0].load(batch)
            before = [counter.total() for counter in (pretended.waits, pretended.to_device, pretended.to_host)]
            outputs = known[0].run()
            after = [counter.total() for counter in (pretended.waits, pretended.to_device, pretended.to_host)]
            steps.append((before, after))
            return outputs

        return advance

    def start():
        for module in (base_training, train_selection):
            monkeypatch.setattr(module, "takes_graphs", lambda device: True)
            monkeypatch.setattr(module, "graphed", graphed)
        return steps

    return start


def make_network(seed=0):
    # A bias before BatchNorm has no gradient but rounding.
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


def train_base(task, device):
    network = make_network()
    losses = train_base_model(task, network, CONFIG, device, progress=False)["train_loss"]
    return [*network.state_dict().values(), torch.tensor(losses)]


def train_zoo(task, device):
    found = []

    def keep(places, step, tensors, losses):
        found.extend([*(tensor.clone() for tensor in tensors.values()), torch.tensor(losses)])

    starts = []
    for seed in range(3):
        torch.manual_seed(seed)
        starts.append(dict(mlp3().named_parameters()))
    zoo.train_networks(task, mlp3().to(device), starts, range(3), CONFIG, keep, stops={2, 12})
    return found


def collect(task, device, select, share):
    network = make_network().to(device)
    layout, config = ParameterLayout.from_model(network, select), CollectConfig(select=select, num_checkpoints=12)
    prefix = train_selection.share_prefix(task, network, layout, config) if share else None
    assert (prefix is not None) == share
    steps = train_selection.train_selection(task, network, layout, config, prefix=prefix)
    return [torch.cat([layout.flatten(network), loss.cpu()[None]]) for _, _, loss in steps]


TRAININGS = {
    "base training": train_base,
    "zoo": train_zoo,
    "collection": lambda *args: collect(*args, "all", share=False),
    "collection of a part": lambda *args: collect(*args, "head", share=True),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_static_steps_are_the_steps_and_can_be_recorded(task, static_steps, name):
    expected, steps = TRAININGS[name](task, "pretend"), static_steps()
    found = TRAININGS[name](task, "pretend")
    assert len(steps) == 11
    # Nothing waits, and nothing goes from the host to the device or back.
    assert all(before == after for before, after in steps)
    for left, right in zip(found, expected, strict=True):
        # A learning rate in float32.
        torch.testing.assert_close(left.cpu(), right.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAININGS)
def test_replayed_steps_are_those_that_are_launched(task, monkeypatch, name):
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need CUDA")
    recorded, record = [], GraphedUpdate._record

    def recording(self, inputs):
        record(self, inputs)
        recorded.append(self._graph is not None)

    monkeypatch.setattr(GraphedUpdate, "_record", recording)
    found = TRAININGS[name](task, "cuda")
    assert recorded == [True]
    monkeypatch.setattr(graphs, "WARM_UP_STEPS", 100)
    expected = TRAININGS[name](task, "cuda")
    assert recorded == [True]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
