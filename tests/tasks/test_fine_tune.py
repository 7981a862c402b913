import time

import pytest
import torch

from pdiff_hf.base_model import BaseModel
from pdiff_hf.forward import forward_logits
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.train_selection import fine_tune

CONFIG = CollectConfig(select="all", train_batch_size=32)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A network that is not trained to the end."""
    task = ImageClassification(ImageClassificationConfig(train_size=300, val_size=100, test_size=100))
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3")
    torch.manual_seed(0)
    model = base.build()
    train_base_model(task, model, BaseTrainingConfig(epochs=3, learning_rate=5e-3), device="cpu", progress=False)
    return task, base.save_weights(model, tmp_path_factory.mktemp("base")), ParameterLayout.from_model(model), model


def train_loss(task, layout, model, vector):
    layout.load_into(model, vector)
    images, labels = task.arrays("train")
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(forward_logits(model, images), labels).item()


def test_trains_on_for_the_time_and_takes_networks_evenly(setting):
    task, base, layout, model = setting
    start = layout.flatten(base.build())
    begin = time.perf_counter()
    networks, steps = fine_tune(task, base, layout, start, CONFIG, seconds=1.0, num=8)
    spent = time.perf_counter() - begin
    assert networks.shape == (8, layout.num_parameters) and steps >= 8
    assert 1.0 <= spent < 6
    losses = [train_loss(task, layout, model, vector) for vector in (start, *networks)]
    assert losses[-1] < 0.5 * losses[0]
    moves = networks.diff(dim=0).norm(dim=1)
    # The learning rate falls to zero: the last networks are closer to each other than the first.
    assert moves[-1] < 0.5 * moves[0]


def test_without_time_there_is_still_one_network(setting):
    task, base, layout, _ = setting
    start = layout.flatten(base.build())
    networks, steps = fine_tune(task, base, layout, start, CONFIG, seconds=1e-9, num=5)
    assert 1 <= len(networks) <= 5 and steps == len(networks)
    assert not torch.equal(networks[0], start)
