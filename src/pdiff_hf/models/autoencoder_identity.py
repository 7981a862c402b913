"""No autoencoder: normalised parameters, folded to the shape that the denoiser takes."""

from typing import ClassVar, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .autoencoder_base import ParameterAutoencoderMixin
from .config import PAPER_LATENTS, AutoencoderConfig

# The denoiser halves the length between its resolutions: a multiple of 8 is enough for four of them.
LENGTH_MULTIPLE = 8


class AutoencoderIdentity(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Diffusion directly on the parameters: the interface of [`AutoencoderPDiff`] without anything learned.

    `encode` normalises a vector `(D,)`, pads it with zeros and folds it to `(C, L)`, so that C consecutive parameters
    become one position; `decode` is the way back, exact up to float32 rounding. The denoiser then works on C·L >= D
    values: its memory grows with D, which is what the autoencoders are there to avoid.

    Parameters:
        num_parameters, layout, normalization, scaling_factor, shift_factor: See [`AutoencoderPDiff`].
        latent_channels (`int`, *optional*, defaults to 32): C.
        latent_length (`int`, *optional*): L; the smallest multiple of 8 that holds all parameters by default.
    """

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_parameter",
        latent_channels: int = 32,
        latent_length: int | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        if latent_length is None:
            size = num_parameters or (layout or {}).get("num_parameters", 0)
            positions = -(-size // latent_channels)
            self.register_to_config(latent_length=-(-positions // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        self._init_common()
        channels, length = self.latent_shape
        if channels * length < self.vector_length:
            raise ValueError(
                f"expected latent_channels × latent_length of at least {self.vector_length} parameters, got "
                f"{channels} × {length}; leave latent_length out."
            )

    def _encode(self, normalized: torch.Tensor) -> torch.Tensor:
        channels, length = self.latent_shape
        padded = torch.nn.functional.pad(normalized, (0, channels * length - self.vector_length))
        return padded.reshape(-1, length, channels).mT.flatten(1)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.reshape(-1, *self.latent_shape).mT.flatten(1)[:, : self.vector_length]


class AutoencoderIdentityConfig(AutoencoderConfig):
    """The recipe's `autoencoder` section of `kind: none`: diffusion on the normalised parameters."""

    builds: ClassVar = AutoencoderIdentity
    latents_grow: ClassVar = True
    PRESETS: ClassVar = {"fast": {}, "paper": {"latent_channels": PAPER_LATENTS["latent_channels"]}}

    kind: Literal["none"] = "none"

    @classmethod
    def variants(cls) -> dict:
        """None: it costs nothing, the denoiser does."""
        return {}

    def build(self, layout: dict) -> AutoencoderIdentity:
        """Build it for `layout` (`ParameterLayout.to_dict()` or `NetworkIdentity.to_config()`)."""
        return AutoencoderIdentity(layout=layout, **self.options("normalization", "latent_channels"))
