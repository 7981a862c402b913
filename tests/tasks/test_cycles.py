"""A cyclic learning rate of a collection, and which of its checkpoints are kept."""

import itertools
import random

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.tasks.base_training import train_base_model
from pdiff_hf.tasks.collect import collect_checkpoints
from pdiff_hf.tasks.config import BaseTrainingConfig, CollectConfig
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig
from pdiff_hf.tasks.train_selection import fine_tune, train_selection

BASE = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", hidden=(8,))
BASE_TRAINING = BaseTrainingConfig(epochs=2, learning_rate=5e-3, train_batch_size=32)


@pytest.fixture(scope="module")
def task():
    return ImageClassification(ImageClassificationConfig(train_size=200, val_size=100, test_size=100))


@pytest.fixture(scope="module")
def model(task):
    torch.manual_seed(0)
    network = BASE.build()
    train_base_model(task, network, BASE_TRAINING, device="cpu", progress=False)
    return network


def cyclic(**values):
    return CollectConfig(**{"select": "all", "train_batch_size": 32, "lr_scheduler": "cyclic", **values})


def kept_steps(config, count):
    return list(itertools.islice(filter(config.is_kept, itertools.count()), count))


def test_rate_rises_from_zero_and_falls_back_along_a_cosine():
    config = cyclic(cycle_steps=100)
    found = [config.learning_rate_factor(step) for step in (0, 25, 50, 75, 100, 125)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0, 0.5])
    assert config.learning_rate_factor(10) == pytest.approx((1 - 0.8090169943749475) / 2)


def test_constant_rate_is_the_default():
    config = CollectConfig(burn_in=3, every=2, num_checkpoints=4)
    assert {config.learning_rate_factor(step) for step in range(20)} == {1.0}
    assert kept_steps(config, 4) == [5, 7, 9, 11]


def test_checkpoints_around_the_lowest_rates_are_kept():
    config = cyclic(cycle_steps=20, cycle_share=0.3, every=2, num_checkpoints=6)
    assert kept_steps(config, 6) == [2, 18, 20, 22, 38, 40]
    assert config.num_steps == 40


def test_burn_in_leaves_checkpoints_out_and_moves_no_cycle():
    config = cyclic(cycle_steps=20, cycle_share=0.3, every=2, burn_in=18, num_checkpoints=4)
    assert kept_steps(config, 4) == [20, 22, 38, 40]


def test_without_a_share_all_of_a_cycle_is_kept():
    assert kept_steps(cyclic(cycle_steps=4), 6) == [1, 2, 3, 4, 5, 6]


def test_last_step_is_that_of_the_last_checkpoint():
    draw = random.Random(0)
    for _ in range(300):
        config = cyclic(
            cycle_steps=draw.randint(2, 40),
            cycle_share=draw.choice([None, 0.01, 0.1, 0.25, 0.5, 1]),
            every=draw.randint(1, 50),
            burn_in=draw.randint(0, 90),
            num_checkpoints=draw.randint(2, 30),
        )
        assert config.num_steps == kept_steps(config, config.num_checkpoints)[-1], config


def test_collection_holds_the_kept_steps_of_every_run(task, model, tmp_path):
    options = {"cycle_steps": 10, "learning_rate": 0.05, "runs": 2}
    for name, config in {
        "all": cyclic(**options, num_checkpoints=20),
        "low": cyclic(**options, num_checkpoints=6, cycle_share=0.2),
    }.items():
        collect_checkpoints(task, BASE, model, BASE_TRAINING, config, tmp_path / name, progress=False)
    everything, low = (ParameterDataset(tmp_path / name) for name in ("all", "low"))
    assert low.rows["step"][:].tolist() == 2 * [1, 9, 10, 11, 19, 20]
    vectors = everything.vectors().view(2, 20, -1)
    assert torch.equal(low.vectors().view(2, 6, -1), vectors[:, [0, 8, 9, 10, 18, 19]])
    # The rate of the first step of a cycle is zero, that of the middle the highest.
    start = low.layout.flatten(model)
    assert torch.equal(vectors[:, 0], start.expand(2, -1)) and torch.equal(vectors[:, 10], vectors[:, 9])
    moves = vectors.diff(dim=1).norm(dim=2)
    assert (moves[:, 4] > 5 * moves[:, 0]).all() and (moves[:, 4] > 5 * moves[:, 8]).all()


def test_optimizer_gets_the_rate_of_every_step(task, model):
    network, config = BASE.build(), cyclic(cycle_steps=6, num_checkpoints=6, learning_rate=0.1, optimizer="sgd")
    network.load_state_dict(model.state_dict())
    layout, rates = ParameterLayout.from_model(network, "all"), []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        list(train_selection(task, network, layout, config))
    finally:
        handle.remove()
    assert rates == pytest.approx([0, 0.025, 0.075, 0.1, 0.075, 0.025])


@pytest.mark.timeout(60)
def test_fine_tuning_of_a_cyclic_collection_knows_no_cycles(task, model, tmp_path):
    base, layout = BASE.save_weights(model, tmp_path), ParameterLayout.from_model(model, "all")
    # Its checkpoints would be further apart than there is time for.
    config = cyclic(cycle_steps=10**7, cycle_share=1e-6)
    networks, steps = fine_tune(task, base, layout, layout.flatten(model), config, seconds=0.2, num=3)
    assert len(networks) == 3 and steps >= 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collect.lr_scheduler=cyclic", "expected cycle_steps with lr_scheduler=cyclic, found none"),
        ("collect.cycle_steps=10", "expected cycle_steps with lr_scheduler=cyclic only, found cycle_steps=10 with"),
        ("collect.cycle_share=0.5", "expected cycle_share with lr_scheduler=cyclic only, found cycle_share=0.5 with"),
    ],
)
def test_keys_of_cycles_come_together(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("digits-mlp", [override])


@pytest.mark.parametrize(("override", "message"), [("cycle_steps=1", "2, found 1"), ("cycle_share=0", "0, found 0")])
def test_cycles_have_a_length_and_a_part_that_is_kept(override, message):
    with pytest.raises(ValueError, match=f"key 'collect.{override.split('=')[0]}': expected greater than .*{message}"):
        load_recipe("digits-cycles", [f"collect.{override}"])


def test_recipe_of_cycles_keeps_whole_cycles_and_the_paper_knows_none():
    collect = load_recipe("digits-cycles").collect
    assert collect.num_steps % collect.cycle_steps == 0 and collect.num_steps == 2 * collect.cycle_steps
    assert load_recipe("digits-cycles", preset="paper").collect == load_recipe("digits-mlp", preset="paper").collect
