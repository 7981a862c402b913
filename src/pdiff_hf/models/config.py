"""Settings of autoencoders and denoisers, the sections `autoencoder` and `diffusion` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# `paper`: Wang et al. 2024, arXiv 2402.13144, v3. `fast`: the same gate at a fraction of the cost.
AUTOENCODER_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"steps": 500, "train_batch_size": 50, "learning_rate": 2e-5, "weight_decay": 1e-2, "lr_warmup_steps": 0},
    # Training begins at the best linear autoencoder; what is left to be learned is little.
    "fast": {"steps": 100, "train_batch_size": 64, "learning_rate": 3e-4, "weight_decay": 0.0, "lr_warmup_steps": 10},
}
DIFFUSION_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "steps": 1000,
        "train_batch_size": 50,
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "lr_warmup_steps": 0,
        "block_out_channels": (64, 128, 256, 512),
        "prediction_type": "epsilon",
    },
    "fast": {
        "steps": 250,
        "train_batch_size": 128,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 25,
        "block_out_channels": (64, 128),
        # Predicting the noise is unstable where almost all is noise: few-step solvers then blow single samples up.
        "prediction_type": "v_prediction",
    },
}


def _fill(values: Any, presets: dict[str, dict[str, Any]]) -> Any:
    # Whatever is wrong with the values is left to pydantic, which names it.
    if not isinstance(values, dict) or str(values.get("preset", "fast")) not in presets:
        return values
    return {**presets[values.get("preset", "fast")], **values}


class OptimizationConfig(BaseModel):
    """What both loops share. Steps are optimiser steps; the batch size is per process, as in diffusers' examples."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(ge=1)
    train_batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "cosine"
    lr_warmup_steps: int = Field(ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_accumulation_steps: int = Field(1, ge=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    use_ema: bool = False
    ema_decay: float = Field(0.9999, gt=0, lt=1)
    checkpointing_steps: int = Field(200, ge=1)
    checkpoints_total_limit: int = Field(1, ge=1)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    seed: int = 0


class AutoencoderConfig(OptimizationConfig):
    """The recipe's `autoencoder` section. What the preset names is a default; every key given wins."""

    kind: Literal["pdiff", "pca", "none"] = Field("pdiff", description="none: diffusion on the normalised parameters")
    preset: Literal["fast", "paper"] = "fast"
    normalization: Literal["per_tensor", "per_parameter"] | None = None
    latent_channels: int = Field(32, ge=1)
    latent_length: int = Field(4, ge=1)
    input_noise: float = Field(1e-3, ge=0)
    latent_noise: float = Field(1e-1, ge=0)
    basis_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the stored components with kind=pca; auto: bfloat16 where float32 would take over 1 GB"
    )
    holdout_every: int = Field(10, ge=2, description="every n-th checkpoint is kept from training for the gate")
    min_explained_variance: float = Field(0.95, le=1)
    max_accuracy_drop: float = Field(0.002, ge=0, description="fraction, on the validation images")
    allow_poor_reconstruction: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        return _fill(values, AUTOENCODER_PRESETS)


class DiffusionConfig(OptimizationConfig):
    """The recipe's `diffusion` section. What the preset names is a default; every key given wins."""

    preset: Literal["fast", "paper"] = "fast"
    use_ema: bool = True
    block_out_channels: tuple[int, ...] = Field(min_length=1)
    layers_per_block: int = Field(1, ge=1)
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    num_train_timesteps: int = Field(1000, ge=1)
    beta_start: float = Field(1e-4, gt=0)
    beta_end: float = Field(2e-2, gt=0)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    latent_noise: float = Field(0.1, ge=0, description="drawn anew each step, in units of the scaled latents")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        return _fill(values, DIFFUSION_PRESETS)


def fit_latents(autoencoder: AutoencoderConfig, diffusion: DiffusionConfig, num_train: int) -> AutoencoderConfig:
    """The configuration with no more latent values than so many checkpoints can tell apart.

    Where latents start at principal components (`kind: pca`, `preset: fast`), K training rows span K - 1
    directions, so at most C·L = K - 1 latent values. L stays as it is as long as one channel fits, else it becomes the
    largest that fits and that the denoiser takes; C is then the largest that fits, never larger than before.
    Configurations that fit are returned as they are.

    Args:
        autoencoder ([`AutoencoderConfig`]): With the wanted latents.
        diffusion ([`DiffusionConfig`]): Whose resolutions divide L.
        num_train (`int`): Checkpoints that the autoencoder is trained on, without those held out for the gate.

    Raises:
        ValueError: there are too few checkpoints for any latents.
    """
    if autoencoder.kind == "none" or (autoencoder.kind == "pdiff" and autoencoder.preset == "paper"):
        return autoencoder
    most = num_train - 1
    channels, length = autoencoder.latent_channels, autoencoder.latent_length
    if channels * length <= most:
        return autoencoder
    shortest = 2 ** (len(diffusion.block_out_channels) - 1)
    if length > most:
        length = most // shortest * shortest
    if length == 0:
        raise ValueError(
            f"expected checkpoints for at least {shortest} latent values, {shortest + 1} without those held out, "
            f"found {num_train}; use more checkpoints."
        )
    return autoencoder.model_copy(update={"latent_channels": min(channels, most // length), "latent_length": length})
