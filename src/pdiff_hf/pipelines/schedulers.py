"""Which schedulers may draw from a pipeline: those that give the spread of what was trained on."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from functools import lru_cache

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin

from ..wording import argument

# What makes the noise schedule and says what is predicted.
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)

# Options that are right for images or other denoisers, or that only many steps make right.
MISLEADING = ("clip_sample", "thresholding", "use_beta_sigmas", "use_flow_sigmas")

# After so many of 1 000 steps, the spread of a right scheduler is up to 4 % off, that of a wrong one 7 to 70 %.
PROBE_STEPS = 100
TOLERANCE = 0.05
# With the steps that are asked for, the spread within which nothing is said, and where a solver is said to diverge.
USUAL_SPREAD = (0.8, 1.25)
MOST_SPREAD = 2.0
PROBE_SIZE = 8192


def check_scheduler(scheduler: SchedulerMixin, trained: SchedulerMixin, num_inference_steps: int) -> None:
    """Check that a scheduler draws what was trained on.

    It has to be one of `trained.compatibles`, with the same noise schedule and kind of prediction, and it has to draw
    right: standard normal noise from the denoiser of standard normal data, which is known in closed form.

    Args:
        scheduler ([`SchedulerMixin`]): The one in question; its state stays as it is.
        trained ([`SchedulerMixin`]): The one that the denoiser was trained with, or saved with.
        num_inference_steps (`int`): With how many steps.

    Raises:
        ValueError: it is of another kind, has another noise schedule, its spread is wrong, or it cannot take so many
            steps.
    """
    name = type(scheduler).__name__
    schedule = getattr(trained, "alphas_cumprod", None)
    if schedule is None:
        raise ValueError(
            f"expected a pipeline that was trained with the noise schedule of a DDPMScheduler, found a "
            f"{type(trained).__name__}."
        )
    kinds = tuple(trained.compatibles)
    found = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(scheduler, (type(trained), *kinds)) or found is None:
        known = ", ".join(sorted(kind.__name__ for kind in kinds if kind is not diffusers.EDMEulerScheduler))
        raise ValueError(f"{name} does not draw from the noise schedule of this pipeline; expected one of {known}.")
    advice = f"make it by {name}.from_config(pipe.scheduler.config) from the pipeline's own"
    if found.shape != schedule.shape or not torch.allclose(found.cpu(), schedule.cpu(), rtol=1e-4):
        raise ValueError(f"{name} has another noise schedule than the pipeline was trained with; {advice}.")
    if (kind := scheduler.config.get("prediction_type")) != trained.config.prediction_type:
        raise ValueError(
            f"{name} expects prediction_type={kind!r}, this pipeline predicts {trained.config.prediction_type!r}; "
            f"{advice}."
        )
    most = len(schedule)
    if num_inference_steps > most:
        raise ValueError(
            f"{argument('num_inference_steps')} must be at most {most}, the steps of training, got "
            f"{num_inference_steps}."
        )
    probe_steps = min(PROBE_STEPS, max(1, most // 2))
    own, plain = (type(scheduler), scheduler.to_json_string()), (DDPMScheduler, _plain(trained).to_json_string())
    try:
        spread, after = (_probe(*own, steps) for steps in (probe_steps, num_inference_steps))
    # Of all that schedulers do not know, each says so with another error.
    except Exception as error:
        raise ValueError(
            f"{name} cannot draw {num_inference_steps} steps of prediction_type={kind!r} with its options: {error}"
        ) from error
    # Of few training steps, the sampler of training itself is as far off.
    tolerance = max(TOLERANCE, 1.5 * abs(_probe(*plain, probe_steps) - 1))
    if not abs(spread - 1) <= tolerance:
        given = ", ".join(f"{key}=True" for key in MISLEADING if scheduler.config.get(key))
        raise ValueError(
            f"{name}{given and f' with {given}'} draws latents of {spread:.2f} times the spread that they should "
            "have; choose another one, or other options of it."
        )
    if not _is_reproducible(*own, probe_steps):
        raise ValueError(
            f"{name} draws noise of its own, so that equal generators give other networks; fix it, if it has a seed "
            "(noise_sampler_seed=0), or choose another one."
        )
    if not after <= MOST_SPREAD:
        raise ValueError(
            f"{name} draws latents of {after:.2f} times the spread that they should have in {num_inference_steps} of "
            f"{most} steps; take {'fewer' if math.isnan(after) else 'more'} steps, or another scheduler."
        )
    if not USUAL_SPREAD[0] <= after <= USUAL_SPREAD[1]:
        warnings.warn(
            f"{num_inference_steps} steps of {name} draw latents of {after:.2f} times the spread that they should "
            "have; take more steps, or another scheduler.",
            stacklevel=2,
        )


def saved_scheduler(config: dict) -> SchedulerMixin:
    """The scheduler of a pipeline's folder, by the content of its `scheduler_config.json`."""
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (inspect.isclass(kind) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"expected a scheduler of diffusers, found {config.get('_class_name')!r}.")
    return kind.from_config(config)


def state_schedule(scheduler: SchedulerMixin) -> None:
    """Let `X.from_config(scheduler.config)` take over the noise schedule also where it is the default of its class.

    `from_config` leaves out what nobody has stated, for which `X` then has defaults of its own.
    """
    if isinstance(scheduler, SchedulerMixin) and (defaults := scheduler.config.get("_use_default_values")):
        scheduler.register_to_config(_use_default_values=[key for key in defaults if key not in SCHEDULE])


def _plain(trained: SchedulerMixin) -> DDPMScheduler:
    return DDPMScheduler(**{key: trained.config[key] for key in SCHEDULE if key in trained.config}, clip_sample=False)


@lru_cache(maxsize=256)
def _probe(kind: type[SchedulerMixin], config: str, num_inference_steps: int) -> float:
    """Spread of [`_draw`]; NaN where it is not finite."""
    latents = _draw(kind, config, num_inference_steps)
    return latents.std().item() if latents.isfinite().all() else float("nan")


@lru_cache(maxsize=256)
def _is_reproducible(kind: type[SchedulerMixin], config: str, num_inference_steps: int) -> bool:
    """Whether all noise comes from the generator."""
    first, second = (_draw(kind, config, num_inference_steps) for _ in range(2))
    return torch.equal(first, second)


@torch.no_grad()
def _draw(kind: type[SchedulerMixin], config: str, num_inference_steps: int) -> torch.Tensor:
    """What the denoiser of standard normal data gives, by a config as JSON and a generator with the seed 0."""
    scheduler = kind.from_config(json.loads(config))
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    latents = torch.randn(PROBE_SIZE, 1, 1, generator=generator)
    latents = latents / latents.std() * scheduler.init_noise_sigma
    options = step_options(scheduler, generator)
    log_alphas = scheduler.alphas_cumprod.double().cpu().clamp(min=1e-12).log()
    for t in scheduler.timesteps:
        # Solvers of higher order ask between two steps of training, where the schedule is interpolated.
        below = min(max(int(t), 0), len(log_alphas) - 1)
        between = torch.lerp(*log_alphas[[below, min(below + 1, len(log_alphas) - 1)]], float(t) - below)
        alpha = between.exp().clamp(1e-12, 1)
        inputs = scheduler.scale_model_input(latents, t)
        # Of data that are N(0, 1), the noised ones are, too; E[noise | x] = √(1−ᾱ)·x, E[data | x] = √ᾱ·x, and the
        # velocity, √ᾱ·noise − √(1−ᾱ)·data, is 0.
        factors = {"epsilon": (1 - alpha).sqrt(), "sample": alpha.sqrt(), "v_prediction": 0.0}
        predicted = inputs * factors[scheduler.config.prediction_type]
        latents = scheduler.step(predicted.to(latents.dtype), t, latents, return_dict=False, **options)[0]
    return latents


def step_options(scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None) -> dict:
    """The generator for those schedulers whose `step` draws noise."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
