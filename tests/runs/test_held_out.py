import math

import pytest
import torch

from pdiff_hf.models.kinds import UNet1DConditionConfig
from pdiff_hf.runs.held_out import MIN_ROWS, held_out_of, kinds_allowed, measure_held_out
from pdiff_hf.training.denoiser import train_denoiser
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.loop import make_accelerator
from small_tasks import train_tasks_autoencoder

CONFIG = UNet1DConditionConfig(steps=60, block_out_channels=(32,), lr_warmup_steps=0, learning_rate=1e-2)


def runs_of(*sizes):
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return {
        str(run): list(range(start, start + size)) for run, (start, size) in enumerate(zip(starts, sizes, strict=True))
    }


def ring(num_rows, num_runs):
    """Runs that go once around the same ring, each with a little noise of its own."""
    torch.manual_seed(0)
    angle = torch.arange(num_rows) * 2 * math.pi / num_rows
    rows = torch.stack([angle.cos(), angle.sin()], 1).repeat(num_runs, 1) * 2**0.5
    return (rows + 0.05 * torch.randn(rows.shape))[:, :, None]


@pytest.mark.parametrize(
    ("sizes", "unordered", "kinds"),
    [
        ((300,), (), ["block", "end"]),
        ((300,), ("0",), []),
        ((MIN_ROWS, MIN_ROWS), (), ["block", "end", "run"]),
        ((MIN_ROWS, MIN_ROWS), ("1",), ["run"]),
        ((MIN_ROWS, MIN_ROWS - 1), (), ["run"]),
        ((1,) * 400, (), []),
    ],
)
def test_kinds_are_those_that_runs_and_their_order_allow(sizes, unordered, kinds):
    assert kinds_allowed(runs_of(*sizes), frozenset(unordered)) == kinds


def test_another_run_on_the_same_ring_is_known_better_than_by_a_gaussian():
    found = measure_held_out(ring(60, 4), runs_of(60, 60, 60, 60), ["run"], CONFIG)["run"]
    assert found["n"] == 60 and found["kept_step"] > 0
    assert found["difference_ci95"][1] < 0 and found["loss"] < 0.9 * found["gaussian"]


def test_a_denoiser_of_conditions_is_told_those_of_the_rows_that_were_held_out(tmp_path):
    dataset = train_tasks_autoencoder(tmp_path, rows_per_run=27)
    config = CONFIG.model_copy(update={"steps": 80, "block_out_channels": (64,)})
    pipeline = train_diffusion(dataset, tmp_path / "autoencoder", tmp_path / "pipeline", config)
    found = held_out_of(tmp_path / "pipeline", dataset, pipeline.autoencoder, dataset.vectors(), ["run"])["run"]
    # Measured: a fifth.
    assert found.n == 27 and found.loss < 0.6 * found.gaussian


def test_what_runs_do_not_share_ends_in_the_gaussian():
    torch.manual_seed(0)
    found = measure_held_out(torch.randn(240, 2, 1), runs_of(60, 60, 60, 60), ["block", "run"], CONFIG)
    assert {kind: of["kept_step"] for kind, of in found.items()} == {"block": 0, "run": 0}
    assert [of["difference"] for of in found.values()] == [0, 0]


def test_of_two_runs_the_one_that_is_left_validates_by_a_block():
    assert measure_held_out(ring(60, 2), runs_of(60, 60), ["run"], CONFIG)["run"]["n"] == 60


def test_a_kind_that_leaves_too_few_rows_for_the_latents_is_left_out():
    latents = torch.randn(80, 64, 1)
    assert measure_held_out(latents, runs_of(80), ["block", "end"], CONFIG) == {}


@pytest.mark.parametrize("validate", ["block", "run"])
def test_whole_parts_choose_the_step_and_are_trained_on_then(tmp_path, validate):
    latents = ring(60, 4)
    config = CONFIG.model_copy(update={"validate": validate})
    denoiser, _, record, _ = train_denoiser(
        make_accelerator(config, tmp_path), latents, runs_of(60, 60, 60, 60), config, tmp_path
    )
    assert record["kept_step"] > 0 and record["num_train"] < 240
    torch.testing.assert_close(denoiser.gaussian.mean, latents.mean(0).flatten())
    assert denoiser.conv_out.weight.abs().max() > 0


def test_the_step_is_chosen_by_rows_of_the_kind_that_is_held_out():
    """Along a random walk every row is known from its neighbours, and none from the rest."""
    torch.manual_seed(0)
    walk = torch.randn(240, 4).cumsum(0)
    latents = ((walk - walk.mean(0)) / walk.std(0))[:, :, None]
    config = CONFIG.model_copy(update={"steps": 150})
    found = measure_held_out(latents, runs_of(240), ["block", "end"], config)
    assert found["block"]["kept_step"] < found["end"]["kept_step"]
