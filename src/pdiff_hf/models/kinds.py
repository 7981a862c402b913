"""The kinds of the sections `autoencoder` and `diffusion`: what a recipe says of a model, without the model.

Their models are imported when they are built: whoever validates a recipe need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ..wording import setting
from .config import PAPER_LATENTS, AutoencoderConfig, DiffusionConfig, OptimizationConfig

if TYPE_CHECKING:
    from diffusers import UNet1DModel

    from ..conditions import ConditionSpec
    from .autoencoder_functional import AutoencoderFunctional
    from .autoencoder_identity import AutoencoderIdentity
    from .autoencoder_pca import AutoencoderPCA
    from .autoencoder_pdiff import AutoencoderPDiff
    from .unet_1d_condition import UNet1DConditionModel

# Whitened, small directions would hide those that tell checkpoints apart; not at all, they would be lost in noise.
LATENT_WHITENING = 0.5

# `paper`: Wang et al. 2024, arXiv 2402.13144, v3. `fast`: principal components, and patches as matrix products instead
# of one-channel convolutions for what they leave; trained weights hardly grow with D.
PRESETS = {
    "paper": {
        "normalization": "per_tensor",
        "channels": (64, 128, 256, 256, 32),
        "kernel_size": 7,
        "stride": 2,
        "norm": "batch",
        "encoder_act": "leaky_relu",
        "decoder_act": "elu",
        "linear_path": False,
        "max_positions": None,
        **PAPER_LATENTS,
    },
    "fast": {
        "normalization": "per_parameter",
        "channels": (32,),
        "kernel_size": 64,
        "stride": 64,
        "norm": "none",
        "encoder_act": "silu",
        "decoder_act": "silu",
        "linear_path": True,
        "max_positions": 64,
        "latent_channels": 32,
        "latent_length": 1,
    },
}
TRAINING = {
    "paper": {"steps": 500, "train_batch_size": 50, "learning_rate": 2e-5, "weight_decay": 1e-2, "lr_warmup_steps": 0},
    # Training begins at the best linear autoencoder; what is left to be learned is little.
    "fast": {
        "steps": 100,
        "train_batch_size": 64,
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "lr_warmup_steps": 10,
        "latent_whitening": LATENT_WHITENING,
    },
}
# Of the decoder of functions; docs/functional.md says what else was tried.
FUNCTIONAL = {
    "steps": 3000,
    "train_batch_size": 32,
    "learning_rate": 3e-3,
    "weight_decay": 1e-3,
    "lr_warmup_steps": 50,
    "max_grad_norm": 10.0,
    "latent_whitening": LATENT_WHITENING,
}
# Of the denoiser that contains the Gaussian; docs/denoiser.md says what else was tried.
LEARNING = {
    "steps": 500,
    "train_batch_size": 128,
    "learning_rate": 6e-3,
    "weight_decay": 0.0,
    "lr_warmup_steps": 25,
    "prediction_type": "v_prediction",
    "beta_schedule": "squaredcos_cap_v2",
    "latent_noise": 0.05,
    "stable_target": True,
    "validate": "between",
}
# From this size on, a basis is stored in bfloat16 unless the recipe says otherwise.
MAX_FLOAT32_BASIS_BYTES = 2**30


class AutoencoderPDiffConfig(AutoencoderConfig, OptimizationConfig):
    """The recipe's `autoencoder` section of `kind: pdiff`, the default: convolutions trained by steps."""

    builds: ClassVar = "pdiff_hf.models.autoencoder_pdiff:AutoencoderPDiff"
    PRESETS: ClassVar = {
        name: {**TRAINING[name], **{key: model[key] for key in PAPER_LATENTS}} for name, model in PRESETS.items()
    }

    kind: Literal["pdiff"] = "pdiff"
    latent_length: int = Field(1, ge=1)
    input_noise: float = Field(1e-3, ge=0)
    latent_noise: float = Field(1e-1, ge=0)

    @classmethod
    def variants(cls) -> dict[str, AutoencoderPDiffConfig]:
        """Both presets."""
        return {name: cls(preset=name) for name in reversed(PRESETS)}

    @property
    def has_components(self) -> bool:
        """Whether the preset has the linear path."""
        return PRESETS[self.preset]["linear_path"]

    def build(self, layout: dict) -> AutoencoderPDiff:
        """Build it, untrained, for `layout` (`ParameterLayout.to_dict()`)."""
        keys = ("normalization", "latent_channels", "latent_length", "input_noise", "latent_noise")
        return self.model_class().from_preset(self.preset, layout=layout, **self.options(*keys))


class AutoencoderPCAConfig(AutoencoderConfig):
    """The recipe's `autoencoder` section of `kind: pca`: principal components."""

    builds: ClassVar = "pdiff_hf.models.autoencoder_pca:AutoencoderPCA"
    PRESETS: ClassVar = {"fast": {"latent_whitening": LATENT_WHITENING}, "paper": PAPER_LATENTS}

    kind: Literal["pca"] = "pca"
    latent_length: int = Field(1, ge=1)
    basis_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the stored components; auto: bfloat16 where float32 would take over 1 GB"
    )

    @property
    def has_components(self) -> bool:
        """Latents are the scores along them."""
        return True

    def build(self, layout: dict) -> AutoencoderPCA:
        """Build it, not yet fitted, for `layout` (`ParameterLayout.to_dict()`)."""
        dtype = self.basis_dtype
        if dtype == "auto":
            size = 4 * self.latent_channels * self.latent_length * layout["num_parameters"]
            dtype = "bfloat16" if size > MAX_FLOAT32_BASIS_BYTES else "float32"
        options = self.options("normalization", "latent_channels", "latent_length")
        return self.model_class()(layout=layout, basis_dtype=dtype, **options)


class AutoencoderIdentityConfig(AutoencoderConfig):
    """The recipe's `autoencoder` section of `kind: none`: diffusion on the normalised parameters."""

    builds: ClassVar = "pdiff_hf.models.autoencoder_identity:AutoencoderIdentity"
    latents_grow: ClassVar = True
    PRESETS: ClassVar = {"fast": {}, "paper": {"latent_channels": PAPER_LATENTS["latent_channels"]}}

    kind: Literal["none"] = "none"

    @classmethod
    def variants(cls) -> dict:
        """None: it costs nothing, the denoiser does."""
        return {}

    def build(self, layout: dict) -> AutoencoderIdentity:
        """Build it for `layout` (`ParameterLayout.to_dict()`)."""
        return self.model_class()(layout=layout, **self.options("normalization", "latent_channels"))


class AutoencoderFunctionalConfig(AutoencoderConfig, OptimizationConfig):
    """The recipe's `autoencoder` section of `kind: functional`: networks as what they compute."""

    builds: ClassVar = "pdiff_hf.models.autoencoder_functional:AutoencoderFunctional"
    compares_functions: ClassVar = True
    PRESETS: ClassVar = {"fast": FUNCTIONAL, "paper": FUNCTIONAL}

    kind: Literal["functional"] = "functional"
    latent_channels: int = Field(64, ge=1)
    latent_length: int = Field(1, ge=1)
    hidden: tuple[int, ...] = Field((512, 512), min_length=1, description="widths of the decoder's layers")
    rank: int = Field(24, ge=1, description="of the offsets of matrices, at most")
    max_decoder_mb: int = Field(256, ge=1, description="memory of the decoder's weights; training takes four times")
    num_probes: int = Field(300, ge=2, description="inputs on which networks are compared to encode them")
    probe_mixing: float = Field(0.5, ge=0, le=0.5, description="largest share of a second example in an input")
    probe_dataset: str | None = Field(
        None, description="folder or Hub id of other images, without labels, that inputs are drawn from, too"
    )
    probe_dataset_share: float = Field(0.5, ge=0, le=1, description="of the inputs that are drawn from it")
    probe_noise: float = Field(
        0.15, ge=0, description="on inputs, in units of their spread; of texts, share of tokens"
    )
    inputs_per_step: int = Field(64, ge=2, description="inputs on which functions are compared in a step")
    pool_size: int = Field(
        4096, ge=1, description="inputs that these are drawn from, by how much networks differ there"
    )
    pool_steps: int = Field(1000, ge=1, description="after which there are new ones")
    max_pool_mb: int = Field(512, ge=1, description="memory of the outputs of all networks on them")
    targets: Literal["auto", "seen", "combinations", "analogies"] = Field(
        "auto",
        description="functions to be written: those of networks, or combinations that no network has; of networks of "
        "several tasks analogies, which have tasks that no network has",
    )
    latent_noise: float = Field(0.1, ge=0, description="on latents of networks, not of combinations")
    match_diversity: bool = Field(
        True, description="draw latents so much farther apart that networks disagree as often as those seen"
    )
    function_loss: float = Field(1.0, ge=0, description="weight of the distance to the outputs of the target")
    task_loss: float = Field(0.0, ge=0, description="weight of the cross-entropy of the labels: one function for all")
    weight_loss: float = Field(0.0, ge=0, description="weight of the distance to the normalised parameters")
    min_explained_variance: float = Field(0.1, le=1, description="of the functions, beside that of their mean")
    max_accuracy_drop: float = Field(0.01, ge=0, description="fraction, on the validation examples")

    @model_validator(mode="after")
    def _check_losses(self) -> AutoencoderFunctionalConfig:
        if not self.function_loss + self.task_loss + self.weight_loss:
            raise ValueError(
                f"expected a loss with a weight above 0, found none; give {setting('autoencoder.function_loss', '1')}"
            )
        if self.targets == "analogies" and not self.function_loss:
            raise ValueError(
                "expected a function_loss with targets=analogies, which have no labels and no parameters, found 0; "
                f"give {setting('autoencoder.function_loss', '1')}."
            )
        return self

    @classmethod
    def variants(cls) -> dict:
        """None: what it costs depends on the base network and its inputs."""
        return {}

    @property
    def has_components(self) -> bool:
        """Latents are the scores along those of the functions."""
        return True

    def build(self, layout: dict) -> AutoencoderFunctional:
        """Build it, not yet fitted, for `layout` (`ParameterLayout.to_dict()`)."""
        keys = ("normalization", "latent_channels", "latent_length", "hidden", "rank", "max_decoder_mb")
        return self.model_class()(layout=layout, **self.options(*keys))


class UNet1DConditionConfig(DiffusionConfig):
    """The recipe's `diffusion` section of `kind: unet_1d_condition`, the default: a Gaussian and what it lacks."""

    builds: ClassVar = "pdiff_hf.models.unet_1d_condition:UNet1DConditionModel"
    contains_gaussian: ClassVar = True
    # The paper's hyper-parameters are those of the kind `unet_1d`.
    PRESETS: ClassVar = {"fast": LEARNING, "paper": LEARNING}

    kind: Literal["unet_1d_condition"] = "unet_1d_condition"
    block_out_channels: tuple[int, ...] = Field((256,), min_length=1)
    layers_per_block: int = Field(1, ge=1)
    condition: bool | None = Field(
        None, description="whether networks are drawn for a condition; null: where the parameter dataset has them"
    )
    class_dropout_prob: float = Field(
        0.1, ge=0, lt=1, description="share of the conditions that training hides, for guidance: arXiv 2207.12598"
    )
    partial_conditions: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the conditions of which training hides a part, so that something may be left open; 0: "
        "networks are drawn for complete ones",
    )

    def uses_conditions(self, spec: ConditionSpec | None) -> bool:
        """Where the dataset has them, unless `condition` says otherwise."""
        if self.condition and spec is None:
            raise ValueError(
                f"expected a parameter dataset with conditions for {setting('diffusion.condition', 'true')}, found "
                "one without; record them, or leave that out."
            )
        return spec is not None and self.condition is not False

    def build(self, latent_shape: tuple[int, int], condition_size: int | None = None) -> UNet1DConditionModel:
        """Build it, untrained, for latents `(B, C, L)` with `latent_shape` (C, L) and conditions `(B, n)`, if any."""
        channels, length = latent_shape
        conditions = {}
        if condition_size is not None:
            conditions = {
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": condition_size,
                "class_dropout_prob": self.class_dropout_prob,
            }
        return self.model_class()(
            **conditions,
            sample_size=length,
            in_channels=channels,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            prediction_type=self.prediction_type,
            num_train_timesteps=self.num_train_timesteps,
        )


class UNet1DConfig(DiffusionConfig):
    """The recipe's `diffusion` section of `kind: unet_1d`, the paper's: [`make_unet_1d`] with fast layers."""

    builds: ClassVar = "diffusers:UNet1DModel"
    # `paper`: Wang et al. 2024, arXiv 2402.13144, v3; noise on the latents is ours, and there is no average.
    PRESETS: ClassVar = {
        "paper": {
            "steps": 1000,
            "train_batch_size": 50,
            "learning_rate": 1e-4,
            "weight_decay": 1e-2,
            "lr_warmup_steps": 0,
            "use_ema": False,
            "latent_noise": 0.0,
            "block_out_channels": (64, 128, 256, 512),
            "prediction_type": "epsilon",
        },
        "fast": {
            "steps": 500,
            "train_batch_size": 128,
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "lr_warmup_steps": 25,
            "block_out_channels": (128,),
            # Predicting the noise is unstable where almost all is noise: few-step solvers then blow single samples up.
            "prediction_type": "v_prediction",
        },
    }

    kind: Literal["unet_1d"] = "unet_1d"
    block_out_channels: tuple[int, ...] = Field(min_length=1)
    layers_per_block: int = Field(1, ge=1)

    @property
    def length_multiple(self) -> int:
        """Every resolution but the first halves the length."""
        return 2 ** (len(self.block_out_channels) - 1)

    def build(self, latent_shape: tuple[int, int]) -> UNet1DModel:
        """Build it, untrained, for latents `(B, C, L)` with `latent_shape` (C, L)."""
        from .unet_1d import make_unet_1d, use_fast_layers

        unet = make_unet_1d(*latent_shape, self.block_out_channels, self.layers_per_block)
        use_fast_layers(unet)
        return unet
