"""A denoiser that is told conditions: what it learns of them, also of those that it has never seen."""

import shutil

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from factories import make_layout
from pdiff_hf import ParameterDataset, PDiffPipeline
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.files import read_json
from pdiff_hf.models.kinds import AutoencoderPCAConfig, UNet1DConditionConfig
from pdiff_hf.training.diffusion import train_diffusion
from small_tasks import CLASSES, NUM_UNSEEN, all_subsets, make_tasks, mean_of, train_tasks_autoencoder

CONFIG = {"steps": 150, "block_out_channels": (64,), "train_batch_size": 64, "lr_warmup_steps": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    dataset = train_tasks_autoencoder(folder)
    train_diffusion(dataset, folder / "autoencoder", folder / "pipeline", UNet1DConditionConfig(**CONFIG))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = PDiffPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def distances(pipeline, subsets, told, **options):
    """Of networks drawn for conditions `told` `(n, 6)` from what those of tasks `subsets` are on average `(n,)`."""
    conditions = [{"classes": CLASSES.describe(row)} for row in told.tolist()]
    options = {"num_inference_steps": 12, "generator": torch.Generator().manual_seed(0), **options}
    drawn = pipeline(batch_size=len(told), condition=conditions, output_type="pt", **options).parameters
    return (drawn - mean_of(subsets)).norm(dim=1)


@pytest.mark.parametrize("subsets", [all_subsets()[:NUM_UNSEEN], all_subsets()[-NUM_UNSEEN:]], ids=["seen", "unseen"])
def test_networks_are_those_of_their_condition(pipeline, subsets):
    own = distances(pipeline, subsets, subsets)
    shuffled = distances(pipeline, subsets, subsets.roll(1, 0))
    unconditioned = distances(pipeline, subsets, subsets, guidance_scale=0)
    # Measured: a fifth of both.
    assert own.mean() < 0.35 * shuffled.mean() and own.mean() < 0.35 * unconditioned.mean()
    assert (own < unconditioned).all()


def test_the_encoder_is_of_the_dataset_and_saved_with_the_pipeline(folder, pipeline):
    assert pipeline.condition_encoder.spec == CLASSES
    assert pipeline.unet.config.class_dropout_prob == UNet1DConditionConfig().class_dropout_prob


def test_conditions_lower_the_loss_on_unseen_networks_and_others_raise_it(folder):
    found = read_json(folder / "pipeline" / "denoiser.json")
    between = found["held_out"]["between"]
    # The tasks' networks are a linear function of the classes and noise.
    assert found["kept_step"] == 0 and found["explained"] > 0.9
    assert between["loss"] == between["regression"] and between["regression_difference"] == 0
    # Measured: a fifth of both.
    assert between["loss"] < 0.5 * between["gaussian"] and between["loss"] < 0.5 * between["unconditioned"]
    assert between["shuffled"] > 1.2 * between["unconditioned"]


def test_one_denoiser_knows_complete_conditions_and_what_is_said_of_others(folder, tmp_path):
    config = UNet1DConditionConfig(**{**CONFIG, "steps": 400}, partial_conditions=0.5)
    dataset = make_tasks(tmp_path)
    pipeline = train_diffusion(dataset, folder / "autoencoder", tmp_path / "pipeline", config)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.condition_encoder.embed_size == 2 * (CLASSES.size + 1)
    unseen = all_subsets()[-NUM_UNSEEN:]
    assert distances(pipeline, unseen, unseen).mean() < 0.35 * distances(pipeline, unseen, unseen.roll(1, 0)).mean()
    # Of cat it is known that it is in it, of dog that it is not: drawn networks are on that side of the others' mean.
    names = CLASSES.names
    told = {"classes": {"include": [names[0]], "exclude": [names[1]]}}
    options = {"num_inference_steps": 12, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    drawn = pipeline(batch_size=64, condition=told, **options).parameters
    origin = mean_of(torch.full((1, CLASSES.size), 0.5))
    directions = mean_of(0.5 + 0.5 * torch.eye(CLASSES.size)) - origin
    bits = torch.linalg.lstsq(directions.T, (drawn - origin).T).solution.T
    assert bits[:, 0].mean() > 0.7 and bits[:, 1].mean() < -0.7 and bits[:, 2:].mean(0).abs().max() < 0.5
    # What is left open differs from draw to draw; of a complete condition, nothing does (measured: 0.15).
    assert bits[:, 2:].std(0).min() > 0.5


def test_conditions_may_be_left_out(folder, tmp_path):
    dataset = make_tasks(tmp_path)
    config = UNet1DConditionConfig(**{**CONFIG, "steps": 1}, condition=False)
    pipeline = train_diffusion(dataset, folder / "autoencoder", tmp_path / "pipeline", config)
    assert pipeline.condition_encoder is None and not (tmp_path / "pipeline" / "condition_encoder").exists()


def test_conditions_that_are_asked_for_have_to_be_there(folder, tmp_path):
    plain = ParameterDataset.write(make_tasks(tmp_path).vectors(), make_layout(), tmp_path / "plain")
    with pytest.raises(ValueError, match="expected a parameter dataset with conditions for condition=true") as caught:
        train_diffusion(
            plain, folder / "autoencoder", tmp_path / "pipeline", UNet1DConditionConfig(**CONFIG, condition=True)
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "pipeline").exists()


def test_a_denoiser_that_has_learned_nothing_of_conditions_says_so(folder, tmp_path):
    config = UNet1DConditionConfig(**{**CONFIG, "steps": 2, "learning_rate": 1e-9})
    dataset = make_tasks(tmp_path)
    chance = dataset.conditions()[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))]
    columns = {"run": [str(row) for row in range(len(chance))], "condition": chance}
    other = ParameterDataset.write(
        dataset.vectors(), make_layout(), tmp_path / "chance", None, columns, conditions=CLASSES
    )
    with pytest.warns(UserWarning, match="networks will not depend on their condition"):
        pipeline = train_diffusion(other, folder / "autoencoder", tmp_path / "pipeline", config)
    assert pipeline.unet.explained is None


def test_before_its_first_step_a_denoiser_depends_on_conditions_that_tell_something(folder, tmp_path, recwarn):
    config = UNet1DConditionConfig(**{**CONFIG, "steps": 2, "learning_rate": 1e-9})
    pipeline = train_diffusion(make_tasks(tmp_path), folder / "autoencoder", tmp_path / "pipeline", config)
    assert read_json(tmp_path / "pipeline" / "denoiser.json")["kept_step"] == 0
    assert not [w for w in recwarn if "depend on their condition" in str(w.message)]
    own, others = all_subsets()[-NUM_UNSEEN:], all_subsets()[-NUM_UNSEEN:].roll(1, 0)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert distances(pipeline, own, own).mean() < 0.35 * distances(pipeline, own, others).mean()


def test_an_interrupted_training_goes_on_to_the_bit(folder, tmp_path):
    dataset, options = make_tasks(tmp_path), {**CONFIG, "steps": 8, "checkpointing_steps": 4, "validate": "none"}
    config = UNet1DConditionConfig(**options)
    whole = train_diffusion(dataset, folder / "autoencoder", tmp_path / "whole", config)
    (tmp_path / "part").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "part" / "checkpoint-4")
    part = train_diffusion(dataset, folder / "autoencoder", tmp_path / "part", config, "latest")
    expected = whole.unet.state_dict()
    assert [name for name, value in part.unet.state_dict().items() if not torch.equal(value, expected[name])] == []
    other = make_tasks(tmp_path / "other", shift=1)
    with pytest.raises(ValueError, match="conditions"):
        train_diffusion(other, folder / "autoencoder", tmp_path / "part", config, str(tmp_path / "whole/checkpoint-4"))


def test_numbers_are_standardised_by_the_rows_that_are_trained_on(folder, tmp_path):
    vectors, spec = make_tasks(tmp_path).vectors(), ConditionSpec.named("metric", ["score"])
    scores = torch.linspace(1, 9, len(vectors))[:, None]
    columns = {"run": [f"run{row}" for row in range(len(vectors))], "condition": scores}
    dataset = ParameterDataset.write(vectors, make_layout(), tmp_path / "scores", None, columns, conditions=spec)
    config = UNet1DConditionConfig(**{**CONFIG, "steps": 1})
    encoder = train_diffusion(dataset, folder / "autoencoder", tmp_path / "pipeline", config).condition_encoder
    train_rows, _ = split_rows(len(vectors), AutoencoderPCAConfig().holdout_every)
    torch.testing.assert_close(encoder.mean, scores[train_rows].mean(0))
    torch.testing.assert_close(encoder.deviation, scores[train_rows].std(0, correction=0))
