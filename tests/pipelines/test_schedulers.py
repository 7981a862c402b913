"""Every scheduler of the installed diffusers draws what a denoiser knows, or is refused in a line."""

import warnings

import diffusers
import pytest
import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config

from factories import SERVED_SCHEDULERS, make_autoencoder, make_pipeline
from pdiff_hf import PDiffPipeline
from pdiff_hf.pipelines.sampling import SCHEDULERS, make_scheduler

# Of diffusers' own code, for schedulers and options that are on their way out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

MEAN, SPREAD = 0.6, 0.8
NAMES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))


class KnownDenoiser(ModelMixin, ConfigMixin):
    """E[noise | x] where the data are normal with mean `MEAN` and spread `SPREAD`, of DDPM's default schedule."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.log_alphas = DDPMScheduler().alphas_cumprod.double().log()

    def forward(self, sample, timestep, return_dict=True):
        below = min(int(timestep), 998)
        alpha = torch.lerp(*self.log_alphas[below : below + 2], float(timestep) - below).exp()
        x = sample.double()
        data = MEAN + alpha.sqrt() * SPREAD**2 / (alpha * SPREAD**2 + 1 - alpha) * (x - alpha.sqrt() * MEAN)
        return (((x - alpha.sqrt() * data) / (1 - alpha).sqrt()).to(sample.dtype),)


def known_pipeline(**config):
    pipeline = PDiffPipeline(make_autoencoder(), KnownDenoiser(), DDPMScheduler(clip_sample=False, **config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, steps=100, batch_size=512):
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size, steps, generator, output_type="latent").parameters


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_draws_the_known_distribution_or_is_refused(name):
    pipeline = known_pipeline()
    try:
        scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    except (TypeError, ValueError, KeyError, ImportError):
        pytest.skip("cannot be made from the config of a DDPMScheduler")
    pipeline.scheduler = scheduler
    if name in SERVED_SCHEDULERS:
        latents = draw(pipeline)
        assert latents.mean() == pytest.approx(MEAN, abs=0.03)
        assert latents.std() == pytest.approx(SPREAD, rel=0.06)
    else:
        with pytest.raises(ValueError, match=f"^{name} .*expected one of DDIMScheduler, ") as error:
            draw(pipeline)
        assert "\n" not in str(error.value)


def test_those_that_are_served_are_there():
    assert set(NAMES) >= SERVED_SCHEDULERS


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (DDIMScheduler, {"clip_sample": True}, "with clip_sample=True draws latents of 0.7"),
        (DDPMScheduler, {"thresholding": True}, "with thresholding=True draws"),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "with use_flow_sigmas=True draws"),
        (DPMSolverMultistepScheduler, {"use_beta_sigmas": True}, "with use_beta_sigmas=True draws"),
        (DPMSolverSinglestepScheduler, {"thresholding": True}, "with thresholding=True draws"),
        (EulerDiscreteScheduler, {"interpolation_type": "log_linear"}, "draws latents of 0.6"),
        (UniPCMultistepScheduler, {"use_flow_sigmas": True}, "with use_flow_sigmas=True draws"),
        (DDIMScheduler, {"beta_end": 0.03}, "another noise schedule"),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}, "another noise schedule"),
        (DDIMScheduler, {"num_train_timesteps": 500}, "another noise schedule"),
        (DDIMScheduler, {"prediction_type": "sample"}, "expects prediction_type='sample', this pipeline predicts"),
        (DDPMScheduler, {"variance_type": "learned"}, "cannot draw 100 steps"),
    ],
)
def test_options_that_draw_another_spread_are_refused(kind, options, reason):
    pipeline = known_pipeline()
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **options)
    with pytest.raises(ValueError, match=reason):
        draw(pipeline)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        (DEISMultistepScheduler, {"solver_order": 1}),
        (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
        (DDPMScheduler, {"variance_type": "fixed_large"}),
    ],
)
def test_options_that_draw_right_are_served(kind, options):
    pipeline = known_pipeline()
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **options)
    assert draw(pipeline).std() == pytest.approx(SPREAD, rel=0.06)


def test_a_subclass_of_somebody_is_served():
    class Mine(DDIMScheduler):
        pass

    pipeline = known_pipeline()
    pipeline.scheduler = Mine.from_config(pipeline.scheduler.config)
    assert draw(pipeline).std() == pytest.approx(SPREAD, rel=0.06)


def test_a_scheduler_with_noise_of_its_own_is_refused():
    # As DPMSolverSDEScheduler does, where torchsde is installed.
    class OwnNoise(DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True):
            following = super().step(model_output, timestep, sample, return_dict=False)[0]
            return (following + 1e-3 * torch.randn_like(sample),)

    pipeline = known_pipeline()
    pipeline.scheduler = OwnNoise.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="OwnNoise draws noise of its own"):
        draw(pipeline)


def test_the_schedule_goes_along_where_nobody_has_stated_it():
    # HeunDiscreteScheduler has other default betas than DDPMScheduler.
    pipeline = PDiffPipeline(make_autoencoder(), KnownDenoiser(), DDPMScheduler(clip_sample=False))
    heun = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert torch.allclose(heun.alphas_cumprod, DDPMScheduler().alphas_cumprod)


@pytest.mark.parametrize("steps", [10, 50])
def test_few_training_steps(steps):
    # Euler's starts from another spread than such a schedule ends with; DDPM's own is what training meant.
    pipeline = make_pipeline()
    scheduler = DDPMScheduler(num_train_timesteps=steps, clip_sample=False, prediction_type="v_prediction")
    pipeline = PDiffPipeline(pipeline.autoencoder, pipeline.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline, steps, 1)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
    with pytest.raises(ValueError, match="times the spread"):
        draw(pipeline, 5, 1)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
    draw(pipeline, steps // 2, 1)
    with pytest.raises(ValueError, match=f"nan times the spread .* in {steps} of {steps} steps; take fewer"):
        draw(pipeline, steps, 1)


@pytest.mark.parametrize("name", [*SCHEDULERS])
def test_all_steps_of_training_can_be_taken(name, tmp_path):
    # As many as the timesteps of training, of a pipeline in memory and of a saved one, whose config states more.
    config = DDPMScheduler(num_train_timesteps=10, clip_sample=False, prediction_type="v_prediction")
    made = make_pipeline()
    PDiffPipeline(made.autoencoder, made.unet, config).save_pretrained(tmp_path)
    for pipeline in (PDiffPipeline(made.autoencoder, made.unet, config), PDiffPipeline.from_pretrained(tmp_path)):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler, 10)
        assert draw(pipeline, 10, 2).isfinite().all()


def test_more_steps_than_training_had_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps must be at most 1000, the steps of training, got 2000"):
        draw(known_pipeline(), 2000, 1)


def test_steps_that_diverge_are_refused_and_too_few_are_named():
    pipeline = known_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"HeunDiscreteScheduler draws latents of 5\.\d+ times .* in 3 of 1000 steps"):
        draw(pipeline, 3, 1)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.warns(UserWarning, match="3 steps of DDIMScheduler draw latents of 0.50 times the spread"):
        draw(pipeline, 3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(pipeline, 20, 1)


def test_a_scheduler_passed_to_from_pretrained_is_compared_with_the_saved_one(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    edm = EDMEulerScheduler(prediction_type="v_prediction")
    pipeline = PDiffPipeline.from_pretrained(tmp_path, scheduler=edm)
    with pytest.raises(ValueError, match="EDMEulerScheduler does not draw from the noise schedule"):
        pipeline(1, 5)
    other = DDIMScheduler(beta_end=0.03, clip_sample=False, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="another noise schedule"):
        PDiffPipeline.from_pretrained(tmp_path, scheduler=other)(1, 5)


def test_the_scheduler_of_training_is_compared_with_itself_as_it_was():
    pipe = make_pipeline()
    pipe.scheduler.register_to_config(
        prediction_type="sample" if pipe.scheduler.config.prediction_type != "sample" else "epsilon"
    )
    with pytest.raises(ValueError, match="this pipeline predicts"):
        pipe(1, 2)
    pipe = make_pipeline()
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod**2
    with pytest.raises(ValueError, match="another noise schedule"):
        pipe(1, 2)


@pytest.mark.parametrize("names", [None, "latents"])
def test_callback_inputs_are_a_list(names):
    with pytest.raises(ValueError, match="must be a list of names"):
        make_pipeline()(1, 2, callback_on_step_end=print, callback_on_step_end_tensor_inputs=names)
