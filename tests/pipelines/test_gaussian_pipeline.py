"""Pipelines of the denoiser that contains the Gaussian, not trained: what is drawn is known."""

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from factories import LATENTS, SERVED_SCHEDULERS, make_autoencoder
from pdiff_hf import PDiffPipeline, UNet1DConditionModel
from pdiff_hf.files import read_json
from pdiff_hf.models.config import PREDICTION_TYPES

# Of diffusers' own code, for schedulers and options that are on their way out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SHAPE = (LATENTS["latent_channels"], LATENTS["latent_length"])


def make_latents():
    """Correlated latents with a mean, whose deviations go from 2 to 0.3."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    rows = torch.randn(60, 8, generator=generator) * torch.linspace(2, 0.3, 8) @ directions
    return (rows + torch.randn(8, generator=generator)).unflatten(1, SHAPE)


def make_pipeline(prediction_type="v_prediction", schedule="squaredcos_cap_v2"):
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction_type, clip_sample=False)
    unet = UNet1DConditionModel(
        sample_size=SHAPE[1], in_channels=SHAPE[0], block_out_channels=(8,), prediction_type=prediction_type
    )
    unet.fit_gaussian(make_latents(), scheduler)
    pipeline = PDiffPipeline(make_autoencoder(), unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_draws(pipeline, steps):
    """Along each direction of the latents, in units of their own deviation, draws are standard normal."""
    gaussian, generator = pipeline.unet.gaussian, torch.Generator().manual_seed(0)
    drawn = pipeline(2048, steps, generator, output_type="latent").parameters.flatten(1)
    scores = (drawn - gaussian.mean) @ gaussian.basis / gaussian.variances.sqrt()
    # Five standard errors of 2048 draws are 0.11 for means and correlations; the rest is the solver's.
    torch.testing.assert_close(scores.mean(0), torch.zeros(8), atol=0.13, rtol=0)
    torch.testing.assert_close(torch.corrcoef(scores.T), torch.eye(8), atol=0.12, rtol=0)
    torch.testing.assert_close(scores.std(0), torch.ones(8), atol=0.14, rtol=0)


@pytest.mark.parametrize("name", sorted(SERVED_SCHEDULERS))
def test_every_scheduler_that_is_served_draws_its_mean_and_covariance(name):
    pipeline = make_pipeline()
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    # The cosine schedule begins at a noise of 20 000 deviations, which Heun's method takes in steps that are too long.
    check_draws(pipeline, 300 if name == "HeunDiscreteScheduler" else 100)


@pytest.mark.parametrize(
    ("name", "steps", "reason"),
    [
        ("KDPM2AncestralDiscreteScheduler", 5, "cannot draw 5 steps of prediction_type='v_prediction'"),
        ("HeunDiscreteScheduler", 30, "draws latents of 2.* times the spread .* take more steps"),
    ],
)
def test_what_the_cosine_schedule_is_too_steep_for_is_refused_in_a_line(name, steps, reason):
    pipeline = make_pipeline()
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=f"{name} {reason}") as error:
        pipeline(1, steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param(DDPMScheduler, 1000, marks=pytest.mark.slow),
        (DDIMScheduler, 100),
        (DPMSolverMultistepScheduler, 20),
        pytest.param(HeunDiscreteScheduler, 300, marks=pytest.mark.slow),
        (EulerDiscreteScheduler, 100),
    ],
)
def test_every_prediction_type_draws_its_mean_and_covariance(prediction_type, kind, steps):
    pipeline = make_pipeline(prediction_type)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    check_draws(pipeline, steps)


def test_the_linear_schedule_does_as_well():
    pipeline = make_pipeline(schedule="linear")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    check_draws(pipeline, 40)


def test_saved_pipeline_names_it_and_draws_the_same(tmp_path):
    pipeline = make_pipeline()
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.1)
    pipeline.save_pretrained(tmp_path)
    assert read_json(tmp_path / "model_index.json")["unet"] == ["pdiff_hf", "UNet1DConditionModel"]
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    drawn = [pipe(3, 5, torch.Generator().manual_seed(0), output_type="pt").parameters for pipe in (pipeline, loaded)]
    torch.testing.assert_close(*drawn, atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_its_mean_and_covariance(tmp_path, dtype):
    make_pipeline().save_pretrained(tmp_path)
    pipeline = PDiffPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.gaussian.basis.dtype == torch.float32
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    check_draws(pipeline, 20)


# Schedulers that its closed form is not for


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (DDPMScheduler, {"beta_schedule": "linear"}, "another noise schedule"),
        (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}, "another noise schedule"),
        (DDIMScheduler, {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}, "another noise sch"),
        (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}, "='epsilon', the denoi"),
        (HeunDiscreteScheduler, {"beta_start": 1e-3, "beta_end": 0.02}, "another noise schedule"),
    ],
)
def test_another_schedule_is_refused_when_it_is_put_together_and_when_it_draws(kind, options, reason):
    options = {"prediction_type": "v_prediction", "clip_sample": False, **options}
    pipeline, scheduler = make_pipeline(), kind(**options)
    with pytest.raises(ValueError, match=reason) as error:
        PDiffPipeline(pipeline.autoencoder, pipeline.unet, scheduler)
    assert "\n" not in str(error.value)
    pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match=reason.split("='epsilon'")[0] or "expects prediction_type") as error:
        pipeline(1, 5)
    assert "\n" not in str(error.value)


def test_another_schedule_in_the_folder_is_refused(pdiff, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("squaredcos_cap_v2", "linear"))
    with pytest.raises(ValueError, match="another noise schedule than the denoiser"):
        PDiffPipeline.from_pretrained(tmp_path)
    code, _, err = pdiff("generate", tmp_path, "--out", tmp_path / "networks")
    line = err.strip().splitlines()[-1]
    assert (
        code == 2 and "Traceback" not in err and "DDPMScheduler has another noise schedule than the denoiser" in line
    )
    assert not (tmp_path / "networks").exists()


def test_a_prediction_that_a_scheduler_lacks_is_one_line():
    pipeline = make_pipeline("sample")
    pipeline.scheduler = diffusers.PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="PNDMScheduler cannot draw 10 steps of prediction_type='sample'") as error:
        pipeline(1, 10)
    assert "\n" not in str(error.value)
