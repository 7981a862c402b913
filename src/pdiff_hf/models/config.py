"""Bases of the sections `autoencoder` and `diffusion` of a recipe; their kinds are in `kinds`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from ..sections import load_class
from ..wording import setting

if TYPE_CHECKING:
    from typing import Self

    from diffusers import DDPMScheduler, ModelMixin

    from ..conditions import ConditionSpec
    from .autoencoder_base import ParameterAutoencoderMixin

# Wang et al. 2024, arXiv 2402.13144, v3, for a subset of the tensors; 768 values for whole networks.
PAPER_LATENTS = {"latent_channels": 1, "latent_length": 128}

# pydantic's own method of this name is deprecated, and none of its fields' business.
warnings.filterwarnings("ignore", 'Field name "validate"', UserWarning)

# What a denoiser may predict of noisy latents: the noise, the velocity or the clean latents.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def latent_arguments() -> str:
    """What decides how many values latents have, for a message."""
    return " × ".join(setting(f"autoencoder.{name}") for name in ("latent_channels", "latent_length"))


def too_few_rows(num_latents: int, num_rows: int, fewer: str | None = None) -> str:
    """What to say when a Gaussian of latents cannot be fitted; `fewer` is how there are fewer latent values."""
    fewer = f"fewer latent values, {latent_arguments()}" if fewer is None else fewer
    return (
        f"the Gaussian of {num_latents} latent values needs at least {num_latents + 1} checkpoints to train on, found "
        f"{num_rows} without those held out; take {fewer}, more checkpoints, or "
        f"{setting('diffusion.kind', 'unet_1d')}."
    )


class StageConfig(BaseModel):
    """What the sections of both training stages share. What the preset names is a default; every key given wins.

    `PRESETS` are what the presets of a kind name, and `builds` is the class of its model, or `"package.module:class"`.
    """

    model_config = ConfigDict(extra="forbid")
    builds: ClassVar[type | str]
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast": {}, "paper": {}}

    # Keys that were given, beside those that the preset fills in.
    _given: frozenset[str] | None = PrivateAttr(None)

    kind: str
    preset: Literal["fast", "paper"] = Field("fast", description="paper: Wang et al. 2024, arXiv 2402.13144, v3")
    seed: int = 0

    @model_validator(mode="wrap")
    @classmethod
    def _fill_from_preset(cls, values: Any, make: Callable[[Any], Self]) -> Self:
        # Whatever is wrong with the values is left to pydantic, which names it.
        if not isinstance(values, dict) or str(values.get("preset", "fast")) not in cls.PRESETS:
            return make(values)
        section = make({**cls.PRESETS[values.get("preset", "fast")], **values})
        section._given = frozenset(values)
        return section

    def __eq__(self, other: object) -> bool:
        # Whether a value was given or filled in makes no difference to what is done.
        return type(self) is type(other) and vars(self) == vars(other)

    def is_open(self, key: str) -> bool:
        """Whether nobody gave a key its value, which then may follow from the data."""
        return self._given is not None and key not in self._given

    @classmethod
    def model_class(cls) -> type[ModelMixin]:
        """The class of its model, imported now."""
        return load_class(cls.builds) if isinstance(cls.builds, str) else cls.builds


class OptimizationConfig(StageConfig):
    """What is trained by steps. They are optimiser steps; the batch size is per process, as in diffusers' examples."""

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


class AutoencoderConfig(StageConfig):
    """Base of the kinds of the recipe's `autoencoder` section.

    A kind that is also an [`OptimizationConfig`] is trained by steps, after `fit_statistics` of its model: see
    [`ParameterAutoencoderMixin`]. For all others `fit_statistics` is all there is.
    """

    # Whether the latents have as many values as the vectors.
    latents_grow: ClassVar[bool] = False
    # Whether networks are encoded by what they compute: training then takes inputs, and the base network.
    compares_functions: ClassVar[bool] = False

    normalization: Literal["per_tensor", "per_parameter"] | None = Field(None, description="null: the model's own")
    latent_channels: int = Field(32, ge=1)
    latent_whitening: float | None = Field(
        None,
        ge=0,
        le=1,
        description="power of its standard deviation that each latent value is divided by; null: one factor for all",
    )
    holdout_every: int = Field(10, ge=2, description="every n-th checkpoint is kept from training for the gate")
    min_explained_variance: float = Field(0.95, le=1)
    max_accuracy_drop: float = Field(0.002, ge=0, description="fraction, on the validation images")
    max_score_drop: float = Field(
        1.0, ge=0, description="of another metric than accuracy: in standard deviations of the originals' scores"
    )
    allow_poor_reconstruction: bool = False

    @classmethod
    def variants(cls) -> dict[str, Self]:
        """Settings worth comparing before training, by name."""
        section = cls()
        return {section.kind: section}

    @property
    def optimization(self) -> OptimizationConfig | None:
        """How it is trained by steps, `None` when it is not."""
        return self if isinstance(self, OptimizationConfig) else None

    @property
    def has_components(self) -> bool:
        """Whether latents start at principal components: K checkpoints then tell K - 1 latent values apart."""
        return False

    def build(self, layout: dict) -> ParameterAutoencoderMixin:
        """An untrained autoencoder for `layout` (`ParameterLayout.to_dict()` or `NetworkIdentity.to_config()`)."""
        raise NotImplementedError

    def options(self, *keys: str) -> dict[str, Any]:
        """These keys as arguments of the model, without those whose default is the model's."""
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def num_latents(self) -> int:
        """Latent values of a network, where their number is a setting."""
        return self.latent_channels * getattr(self, "latent_length", 1)

    def fit_latents(self, denoiser: DiffusionConfig, num_train: int) -> Self:
        """This section with no more latent values than so many checkpoints can tell apart.

        With principal components, K training rows span K - 1 directions, so at most C·L = K - 1 latent values; the
        denoiser may take fewer. L stays as it is as long as one channel fits, else it becomes the largest that fits
        and that the denoiser takes; C is then the largest that fits, never larger than before. Sections that fit are
        returned as they are.

        Args:
            denoiser ([`DiffusionConfig`]): Whose lengths L may have.
            num_train (`int`): Checkpoints that the autoencoder is trained on, without those held out for the gate.

        Raises:
            ValueError: there are too few checkpoints for any latents.
        """
        most = denoiser.most_latents(num_train)
        if not self.has_components or self.latent_channels * self.latent_length <= most:
            return self
        channels, length = self.latent_channels, self.latent_length
        shortest = denoiser.length_multiple
        if length > most:
            length = most // shortest * shortest
        if length == 0:
            raise ValueError(
                f"expected checkpoints for at least {shortest} latent values, found {num_train} without those held "
                "out; use more checkpoints."
            )
        return self.model_copy(update={"latent_channels": min(channels, most // length), "latent_length": length})


class DiffusionConfig(OptimizationConfig):
    """Base of the kinds of the recipe's `diffusion` section: noise schedule and loss; a kind adds its denoiser."""

    use_ema: bool = True
    prediction_type: Literal[PREDICTION_TYPES]
    num_train_timesteps: int = Field(1000, ge=1)
    beta_start: float = Field(1e-4, gt=0)
    beta_end: float = Field(2e-2, gt=0)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    latent_noise: float = Field(0.1, ge=0, description="drawn anew each step, in units of the scaled latents")
    stable_target: bool = Field(
        False, description="predict what is expected of all checkpoints, not the one that was noised: arXiv 2302.00670"
    )
    snr_gamma: float | None = Field(
        None, gt=0, description="weight timesteps by min-SNR, arXiv 2303.09556; null: all alike"
    )
    validate: Literal["none", "between", "block", "run"] = Field(
        "none", description="rows that choose which step is kept: drawn at random, blocks in the middle, or whole runs"
    )
    validation_share: float = Field(0.125, gt=0, lt=1, description="of the training rows")

    # Whether the denoiser contains the Gaussian of the latents; it is then what step 0 is.
    contains_gaussian: ClassVar[bool] = False

    def most_latents(self, num_rows: int) -> int:
        """Latent values that so many training rows are enough for; where whole runs validate, it may be fewer."""
        if not self.contains_gaussian or self.validate == "none":
            return num_rows - 1
        # Around a block, as many rows as it has are not trained on either.
        share = self.validation_share * (2 if self.validate == "block" else 1)
        return num_rows - 1 - max(1, round(share * num_rows))

    @property
    def length_multiple(self) -> int:
        """What the length of latents has to be a multiple of."""
        return 1

    def uses_conditions(self, spec: ConditionSpec | None) -> bool:
        """Whether a denoiser of a dataset with conditions of `spec`, or with none, is trained with them.

        Raises:
            ValueError: it is to be, and there are none.
        """
        return False

    def build(self, latent_shape: tuple[int, int]) -> ModelMixin:
        """An untrained denoiser for latents `(B, C, L)` with `latent_shape` (C, L).

        Its config has `in_channels` C and `sample_size` L, and it is called as [`UNet1DModel`] is. A kind that can
        use conditions also takes how many numbers they have, `condition_size`, `None` for a denoiser without them; its
        config then has a `class_dropout_prob`.
        """
        raise NotImplementedError

    def build_scheduler(self) -> DDPMScheduler:
        """The noise schedule of training."""
        from diffusers import DDPMScheduler

        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            prediction_type=self.prediction_type,
            clip_sample=False,
        )
