"""The common part of all parameter autoencoders: normaliser, shape of the latents and their statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..identity import NetworkIdentity, shown
from ..layout import ParameterLayout
from ..wording import setting
from .config import latent_arguments
from .normalizer import BLOCK_VALUES, ParameterNormalizer

# Decoded float32 values of one block: 256 MB, and as much again for each wide activation.
DECODED_VALUES = 2**26


@dataclass
class ParameterEncoderOutput(BaseOutput):
    """Output of `encode`: latents `(B, C, L)`, not scaled."""

    latents: torch.Tensor


@dataclass
class ParameterDecoderOutput(BaseOutput):
    """Output of `decode`: raw parameter values `(B, D)` in float32."""

    sample: torch.Tensor


@dataclass
class ParameterAutoencoderOutput(BaseOutput):
    """Output of `forward`: reconstructed raw parameter values `(B, D)` in float32, and latents `(B, C, L)`, not noisy.

    `loss` is the mean squared error of the normalised vectors.
    """

    sample: torch.Tensor
    latents: torch.Tensor
    loss: torch.Tensor


class ParameterAutoencoderMixin:
    """Common interface of all autoencoders, beside diffusers' `ModelMixin` and `ConfigMixin`.

    A subclass calls `_init_common` in its constructor and implements `_encode`, normalised `(B, D)` → `(B, C * L)`,
    and `_decode`, the way back. Its config has `num_parameters`, `layout`, `normalization`, `latent_channels`,
    `latent_length`, `scaling_factor` and `shift_factor`. One that is trained by steps has a `forward` as that of
    [`AutoencoderPDiff`], which gives the loss of a batch: `model(sample, input_noise, latent_noise, loss_only=True)`.
    """

    # De-normalising in half precision would round the parameters to 3 digits.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["normalizer"]
    # Whether it encodes what networks compute, and has to be given the base network by a method `connect`.
    needs_network: ClassVar[bool] = False

    def _init_common(self) -> None:
        config = self.config
        if (config.num_parameters is None) == (config.layout is None):
            raise ValueError("give exactly one of num_parameters and layout.")
        self.vector_length = config.num_parameters or config.layout["num_parameters"]
        self.latent_shape = (config.latent_channels, config.latent_length)
        self.normalizer = ParameterNormalizer(self.vector_length, config.normalization, config.layout)
        self.register_buffer("latent_mean", torch.zeros(self.latent_shape))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Load an autoencoder; arguments are those of [`ModelMixin.from_pretrained`].

        Raises:
            ValueError: the file of weights lacks tensors, e.g. because another version has written it. diffusers would
                leave them as they are initialised and go on.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path}: expected the weight {missing[0]!r} of an {cls.__name__}, found "
                f"{len(missing)} missing; another version wrote it, train it again."
            )
        return (model, info) if wants_info else model

    @property
    def identity(self) -> NetworkIdentity:
        """Which network the vectors belong to, as far as the config says it."""
        where = shown(self.config.get("_name_or_path") or "the autoencoder")
        return NetworkIdentity.of_config(where, {**self.layout.to_dict(), **self.config.layout})

    @property
    def layout(self) -> ParameterLayout:
        """Layout of the vectors; raises `ValueError` for a model built from `num_parameters` alone."""
        if self.config.layout is None:
            raise ValueError(
                "this autoencoder was built without a layout; pass layout=ParameterLayout(...).to_dict()."
            )
        return ParameterLayout.from_dict(dict(self.config.layout))

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Fit the normaliser, and whatever else has a closed form, to raw training vectors `(K, D)`."""
        self.normalizer.fit(vectors)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> ParameterAutoencoderOutput | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode and decode raw vectors `(B, D)`."""
        target = self.normalizer.normalize(sample)
        latents = self._encode(target.to(self.dtype))
        normalized = self._decode(latents)
        loss = torch.nn.functional.mse_loss(normalized.float(), target)
        output = (self.normalizer.denormalize(normalized), latents.reshape(-1, *self.latent_shape), loss)
        return ParameterAutoencoderOutput(*output) if return_dict else output

    def run_trained_layers(self, batch_size: int) -> None:
        """Pass a batch without values through the layers that are trained, whose outputs training keeps."""
        self._decode(self._encode(torch.empty(batch_size, self.vector_length, device=self.device)))

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> ParameterEncoderOutput | tuple[torch.Tensor]:
        """Encode raw vectors `(B, D)` to latents `(B, C, L)`."""
        self._check_vectors(x)
        latents = self._encode(self.normalizer.normalize(x).to(self.dtype)).reshape(-1, *self.latent_shape)
        return ParameterEncoderOutput(latents=latents) if return_dict else (latents,)

    def _check_vectors(self, x: torch.Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.vector_length:
            raise ValueError(f"expected vectors of shape (B, {self.vector_length}), got {tuple(x.shape)}.")

    @torch.no_grad()
    def encode_rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """Encode raw vectors `(K, D)`, a tensor or [`StoredVectors`], in bounded memory.

        The latents `(K, C, L)` are float32 and on the model's device.
        """
        size = max(1, BLOCK_VALUES // self.vector_length)
        starts = range(0, len(vectors), size)
        return torch.cat([self.encode(vectors[s : s + size].to(self.device)).latents.float() for s in starts])

    @torch.no_grad()
    def reconstruct_blocks(self, vectors: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Encode and decode raw vectors `(K, D)`, a tensor or [`StoredVectors`], block by block of bounded size.

        Gives rows, columns, and the reconstructed raw values `(rows, columns)` on the model's device, until the blocks
        are all of the `(K, D)` values.
        """
        size = max(1, BLOCK_VALUES // self.vector_length)
        for start in range(0, len(vectors), size):
            rows = slice(start, min(start + size, len(vectors)))
            yield rows, slice(0, self.vector_length), self.decode(self.encode_rows(vectors[rows])).sample

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> ParameterDecoderOutput | tuple[torch.Tensor]:
        """Decode latents `(B, C, L)` to raw vectors `(B, D)` in float32."""
        if z.ndim != 3 or z.shape[1:] != self.latent_shape:
            raise ValueError(
                f"expected latents of shape (B, {', '.join(map(str, self.latent_shape))}), got {tuple(z.shape)}."
            )
        sample = self.normalizer.denormalize(self._decode(z.to(self.dtype).flatten(1)))
        return ParameterDecoderOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    def decode_rows(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Decode latents `(K, C, L)`, on the model's device, to blocks of raw vectors `(rows, D)` of bounded size."""
        for part in latents.split(max(1, DECODED_VALUES // self.vector_length)):
            yield self.decode(part).sample

    @torch.no_grad()
    def set_latent_statistics(self, latents: torch.Tensor, whitening: float | None = None) -> None:
        """Set `scaling_factor`, `shift_factor` and `latent_mean` from the encoded dataset `(K, C, L)`.

        `(latents - shift_factor) * scaling_factor` then has mean 0 and mean square 1 over all values. By default, the
        factor is one for all of them.

        Args:
            whitening (`float`, *optional*): Gives every latent value a factor of its own: in units of what it stands
                for, see [`~ParameterAutoencoderMixin.latent_deviations`], it is divided by this power of its standard
                deviation. 1 whitens, 0 leaves the proportions as they are.

        Raises:
            ValueError: they do not vary, or with `whitening` one of the values does not.
        """
        latents = latents.float()
        self.latent_mean.copy_(latents.mean(0))
        std, shift = latents.std(), latents.mean()
        constant = (latents == latents[0]).all(0).flatten()
        if not torch.isfinite(std) or constant.all():
            found = "some are not finite" if not torch.isfinite(std) else "they are the same for all checkpoints"
            raise ValueError(f"the latents must be finite and vary, found that {found}.")
        if whitening is None:
            self.register_to_config(shift_factor=shift.item(), scaling_factor=1 / std.item())
            return
        if constant.any():
            raise ValueError(
                f"latent value {int(constant.int().argmax())} is the same for all checkpoints, found "
                f"{int(constant.sum())} such of {len(constant)}; take fewer latent values, {latent_arguments()}, or "
                f"{setting('autoencoder.latent_whitening', 'null')}."
            )
        stds, deviations = latents.flatten(1).double().std(0), self.latent_deviations
        kept = (stds if deviations is None else stds * deviations.double()) ** (1 - whitening)
        factors = kept / stds
        shift, factors = shift.item(), factors / ((latents.flatten(1) - shift) * factors).square().mean().sqrt()
        self.register_to_config(shift_factor=shift, scaling_factor=factors.tolist())

    @property
    def latent_deviations(self) -> torch.Tensor | None:
        """By how much vectors vary along every latent value `(C·L,)` where it varies by 1, `None` where not known."""
        components = getattr(self, "components", None)
        return None if components is None else components.deviations

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """From the autoencoder's latents to those of the diffusion."""
        return (latents - self.config.shift_factor) * self._scaling_factor(latents)

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """From the diffusion's latents to those of the autoencoder."""
        return latents / self._scaling_factor(latents) + self.config.shift_factor

    def _scaling_factor(self, latents: torch.Tensor) -> float | torch.Tensor:
        factor = self.config.scaling_factor
        if isinstance(factor, (int, float)):
            return factor
        return torch.tensor(factor, dtype=torch.float32, device=latents.device).view(self.latent_shape)
