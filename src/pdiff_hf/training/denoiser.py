"""Training of a denoiser on latents, and what it has learned of rows that it has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import DDPMScheduler, ModelMixin

from ..models.config import DiffusionConfig, too_few_rows
from ..models.partial_conditions import PartialConditions
from ..wording import setting
from .batches import GlobalBatch
from .loop import Trained, run_steps
from .losses import Denoiser, TrainingTargets, denoising_losses
from .rows import hold_out
from .step_choice import StepChoice, candidate_steps

# At which a validation loss is taken.
VALIDATION_TIMESTEPS = 50
# Of a condition, with something else left open each time, for a regression and for a validation loss.
HIDINGS = 4
# Rows that choose the step in whole parts of the collection, as whole conditions are: then all rows are trained on for
# as many steps.
WHOLE_PARTS = ("block", "run")
# ᾱ at the last timestep, below which predicted noise is no way to draw: the cosine schedule has 2e-9, the linear 4e-5.
LEAST_SIGNAL = 1e-6
# Of the chance that a condition is hidden.
DROPOUT_LEVELS = 2**20
# Checkpoints of that training, in the folder of the stage.
ALL_ROWS = "all_rows"


def train_denoiser(
    accelerator: Accelerator,
    latents: torch.Tensor,
    runs: Mapping[str, Sequence[int]],
    config: DiffusionConfig,
    output_dir: Path,
    resume_from_checkpoint: str | None = None,
    sources: Mapping[str, Any] | None = None,
    description: str = "diffusion",
    conditions: torch.Tensor | None = None,
    units: torch.Tensor | None = None,
    partial: PartialConditions | None = None,
) -> tuple[ModelMixin, DDPMScheduler, dict[str, Any], list[dict[str, float]]]:
    """Train the denoiser of a config on scaled latents.

    The loss is the mean squared error of the predicted noise (Source: Ho et al. 2020, arXiv 2006.11239, eq. 14) or
    velocity (Source: Salimans and Ho 2022, arXiv 2202.00512, appendix D), or of their expectation, see
    [`TrainingTargets`].

    Args:
        accelerator ([`accelerate.Accelerator`]): Of this training.
        latents (`torch.Tensor` of shape `(K, C, L)`): Of the training rows, on the accelerator's device.
        runs (`Mapping[str, Sequence[int]]`): By run the rows, in the order of their time.
        config ([`DiffusionConfig`]): Hyper-parameters, and which rows choose the step that is kept.
        output_dir (`Path`): Where checkpoints are written.
        resume_from_checkpoint, sources, description: See [`run_steps`].
        conditions (`torch.Tensor` of shape `(K, n)`, *optional*): Class labels of the rows, as a [`ConditionEncoder`]
            gives them, on the accelerator's device.
        units (`torch.Tensor` of shape `(K,)`, *optional*): Numbers of the rows that are left out together, see
            [`condition_units`]; by default each is on its own.
        partial ([`PartialConditions`], *optional*): How something of them is left open while training, in a share
            `config.partial_conditions` of the rows.

    Returns:
        `tuple`: the denoiser in eval mode; the noise schedule; which step was kept, by which rows and by which losses:
        `{"kept_step", "validate", "num_train", "num_validation", "explained", "curve"}`; and the history of the loss.

    Raises:
        ValueError: there are too few rows for the latents or for the validation.
    """
    rows, validation = split_validation(config, runs, latents[0].numel(), units=units)
    rows, validation_rows = rows.to(latents.device), validation.to(latents.device)
    train, validation = latents[rows], latents[validation_rows]
    labels, validation_labels = take(conditions, rows), take(conditions, validation_rows)
    if conditions is not None and units is None:
        units = torch.arange(len(latents))
    scheduler, choice = config.build_scheduler(), None
    if config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] < LEAST_SIGNAL:
        warnings.warn(
            f"with beta_schedule={config.beta_schedule} almost nothing of the latents is left at the last step, and "
            "dividing by that magnifies every error of a predicted noise: what is drawn will hardly be networks. "
            "Take prediction_type=v_prediction, or beta_schedule=linear.",
            stacklevel=2,
        )
    validated = [validation_labels]
    if partial is not None:
        validated += _open_labels(validation_labels, partial, config.seed).chunk(HIDINGS)
    if len(validation):

        def validation_losses(model: torch.nn.Module) -> torch.Tensor:
            losses, *of_open = (
                denoising_losses(as_denoiser(model, labels), validation, scheduler, VALIDATION_TIMESTEPS)
                for labels in validated
            )
            if of_open:
                losses = torch.lerp(losses, torch.stack(of_open).mean(0), config.partial_conditions)
            # One choice for all, should processes round differently.
            return broadcast(losses.float().to(accelerator.device)).cpu()

        choice = StepChoice(validation_losses, candidate_steps(config.steps, config.contains_gaussian))
    resumed = {"resume_from_checkpoint": resume_from_checkpoint, "sources": sources, "description": description}
    resumed["partial"] = partial
    trained = _train(accelerator, train, labels, take(units, rows), config, output_dir, choice=choice, **resumed)
    kept = config.steps if choice is None else choice.kept_step
    denoiser = trained.model
    if kept == 0:
        # Nothing was learned that the rows for validation confirm: now they count as well.
        open_labels = None if partial is None else _open_labels(conditions, partial, config.seed)
        denoiser.fit_gaussian(latents, scheduler, conditions, units, open_labels)
        if conditions is not None and denoiser.explained is None:
            warnings.warn(
                "expected that conditions tell something of unseen checkpoints, found neither a regression nor a step "
                "of training that does better than the Gaussian of all: networks will not depend on their condition. "
                f"Train on more checkpoints, or longer ({setting('diffusion.steps')}).",
                stacklevel=2,
            )
    elif choice is not None and (config.validate in WHOLE_PARTS or conditions is not None):
        # They are a part of the distribution that nothing else tells of.
        again = config.model_copy(update={"steps": kept, "lr_warmup_steps": min(config.lr_warmup_steps, kept)})
        if resume_from_checkpoint is not None:
            resumed["resume_from_checkpoint"] = "latest"
        denoiser = _train(accelerator, latents, conditions, units, again, output_dir / ALL_ROWS, **resumed).model
    record = {
        "kept_step": kept,
        "validate": config.validate,
        "num_train": len(train),
        "num_validation": len(validation),
        "explained": denoiser.explained if conditions is not None else None,
        "threads": trained.threads,
        "curve": {} if choice is None else {str(step): loss for step, loss in choice.curve.items()},
    }
    return denoiser, scheduler, record, trained.history


def _train(
    accelerator: Accelerator,
    rows: torch.Tensor,
    conditions: torch.Tensor | None,
    units: torch.Tensor | None,
    config: DiffusionConfig,
    output_dir: Path,
    partial: PartialConditions | None = None,
    **options: Any,
) -> Trained:
    """Train a new denoiser on latents `(K, C, L)`, conditions `(K, n)` and units; `options` are of [`run_steps`]."""
    shape, sizes = tuple(rows.shape[1:]), () if conditions is None else (conditions.shape[1],)
    torch.manual_seed(config.seed)
    denoiser, scheduler = config.build(shape, *sizes), config.build_scheduler()
    means = None
    if config.contains_gaussian:
        open_labels = None if partial is None else _open_labels(conditions, partial, config.seed)
        means = denoiser.fit_gaussian(rows, scheduler, conditions, units, open_labels)

    # Rows of the same condition have the same number.
    kinds = None if conditions is None else conditions.unique(dim=0, return_inverse=True)[1]
    targets = TrainingTargets(rows, scheduler, config.latent_noise, config.stable_target, config.snr_gamma)

    def draw(batch: GlobalBatch) -> Sequence[torch.Tensor]:
        noises = batch.normal(*shape), batch.normal(*shape)
        drawn = batch.indices, *noises, batch.integers(config.num_train_timesteps)
        if conditions is None:
            return drawn
        is_dropped = batch.integers(DROPOUT_LEVELS) < denoiser.config.class_dropout_prob * DROPOUT_LEVELS
        return *drawn, is_dropped, *([] if partial is None else [batch.normal(partial.num_noise)])

    def loss_fn(
        model: torch.nn.Module,
        indices: torch.Tensor,
        latent_noise: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        is_dropped: torch.Tensor | None = None,
        hiding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        clean = torch.add(rows[indices], latent_noise, alpha=config.latent_noise)
        others, told = None, {}
        if conditions is not None:
            labels = conditions[indices]
            if partial is None:
                others = kinds[indices, None] != kinds
            else:
                labels = partial.hide(labels, hiding, config.partial_conditions)
                others = partial.differ(labels, conditions)
            others &= ~is_dropped[:, None]
            told = {"class_labels": labels, "force_drop_ids": is_dropped}
        if means is not None:
            told["class_means"] = means[indices]
        noisy, target, weights = targets(clean, noise, timesteps, others)
        predicted = model(noisy, timesteps, **told, return_dict=False)[0].float()
        return targets.loss(predicted, target, weights)

    return run_steps(accelerator, denoiser, len(rows), draw, loss_fn, config, output_dir, **options)


def _open_labels(conditions: torch.Tensor, partial: PartialConditions, seed: int) -> torch.Tensor:
    """What is said of conditions `(K, n)` where something is left open, of all of them several times in turn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(HIDINGS * len(conditions), partial.num_noise, generator=generator).to(conditions.device)
    return partial.hide(conditions.repeat(HIDINGS, 1), noise, 1.0)


def split_validation(
    config: DiffusionConfig,
    runs: Mapping[str, Sequence[int]],
    num_latents: int,
    fewer: str | None = None,
    units: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the training rows those that are trained on, and those that choose the step that is kept.

    Raises:
        ValueError: there are too few of them, for latents of `num_latents` values; see [`too_few_rows`] for `fewer`.
    """
    rows, validation = torch.arange(sum(map(len, runs.values()))), torch.arange(0)
    if config.validate != "none":
        rows, validation = hold_out(config.validate, runs, config.validation_share, config.seed, units)
    if config.contains_gaussian and len(rows) <= num_latents:
        raise ValueError(too_few_rows(num_latents, len(rows), fewer))
    return rows, validation


def take(conditions: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """The conditions of some rows, where there are any."""
    return None if conditions is None else conditions[rows.to(conditions.device)]


def as_denoiser(model: torch.nn.Module, conditions: torch.Tensor | None = None) -> Denoiser:
    """The prediction of a model of [`DiffusionConfig.build`], wrapped or not, for rows of these conditions `(K, n)`.

    Without conditions, one that takes them knows none. [`denoising_losses`] gives all K rows several times in turn.
    """
    if conditions is None:
        return lambda noisy, timesteps: model(noisy, timesteps, return_dict=False)[0]

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        labels = conditions.repeat(len(noisy) // len(conditions), 1)
        return model(noisy, timesteps, class_labels=labels, return_dict=False)[0]

    return predict
