"""The 1-D convolutional autoencoder of p-diff, with a dense latent."""

from functools import partial

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.utils.checkpoint import checkpoint

from .autoencoder_base import ParameterAutoencoderMixin, ParameterAutoencoderOutput
from .autoencoder_pca import PrincipalComponents
from .kinds import PRESETS
from .normalizer import block_values
from .patches import PatchConv1d, PatchConvTranspose1d

ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}


class AutoencoderPDiff(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Autoencoder of flat parameter vectors `(B, D)` with latents `(B, C, L)`.

    Normalised vectors, zero-padded to a multiple of the total stride, go through strided `Conv1d` layers and a dense
    layer; the decoder is the mirror. While training, Gaussian noise is added to the normalised input and to the
    latent. (Source: Wang et al. 2024, arXiv 2402.13144, §3.) With `linear_path`, the principal components run beside
    the convolutions, fitted by [`~AutoencoderPDiff.fit_statistics`] and not trained; the convolutional path starts at
    zero, so that training begins at the best linear autoencoder. With `max_positions`, what the convolutions leave is
    pooled to so many positions before the dense layer, with weights of their own: it does not grow with D then.

    Parameters:
        num_parameters (`int`, *optional*): Length D of a vector; exactly one of `num_parameters` and `layout`.
        layout (`dict`, *optional*): `ParameterLayout.to_dict()`, makes the model self-contained;
            `NetworkIdentity.to_config()` also says which network it is for.
        normalization (`str`, *optional*, defaults to `"per_parameter"`): `"per_parameter"` or `"per_tensor"` z-scores.
        channels (`tuple[int, ...]`): Output channels of each convolution of the encoder.
        kernel_size (`int`), stride (`int`): Of every convolution.
        norm (`str`): `"batch"` or `"none"`, after every convolution but the decoder's last.
        encoder_act (`str`), decoder_act (`str`): One of `leaky_relu`, `elu`, `silu`, `gelu`, `relu`.
        linear_path (`bool`): Adds the principal components.
        max_positions (`int`, *optional*): Positions that the dense layers see at most; all of them by default.
        latent_channels (`int`), latent_length (`int`): C and L; C·L values make a latent.
        input_noise (`float`, *optional*, defaults to 1e-3): Standard deviation on the normalised input.
        latent_noise (`float`, *optional*, defaults to 1e-1): Standard deviation on the latents.
        scaling_factor (`float` or `list[float]`), shift_factor (`float`): Set from the encoded dataset after training;
            one factor, or one for each of the C·L latent values.
    """

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_parameter",
        channels: tuple[int, ...] = (32,),
        kernel_size: int = 64,
        stride: int = 64,
        norm: str = "none",
        encoder_act: str = "silu",
        decoder_act: str = "silu",
        linear_path: bool = True,
        max_positions: int | None = 64,
        latent_channels: int = 32,
        latent_length: int = 1,
        input_noise: float = 1e-3,
        latent_noise: float = 1e-1,
        scaling_factor: float | list[float] = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        if norm not in ("batch", "none"):
            raise ValueError(f"norm must be 'batch' or 'none', got {norm!r}.")
        for act in (encoder_act, decoder_act):
            if act not in ACTIVATIONS:
                raise ValueError(f"an activation must be one of {sorted(ACTIVATIONS)}, got {act!r}.")
        if stride < 1 or kernel_size < stride or (stride == 1 and kernel_size % 2 == 0):
            raise ValueError(f"need kernel_size >= stride >= 1, odd for stride 1; got {kernel_size} and {stride}.")
        total_stride = stride ** len(channels)
        self.padded_length = -(-self.vector_length // total_stride) * total_stride
        latent_dim = latent_channels * latent_length
        padding = (kernel_size - stride + 1) // 2
        output_padding = stride - kernel_size + 2 * padding

        positions = self.padded_length // total_stride
        pooled = positions if max_positions is None else min(positions, max_positions)
        # Patches that do not overlap are rows of a matrix.
        convolution, transposed = nn.Conv1d, nn.ConvTranspose1d
        if kernel_size == stride:
            convolution, transposed = PatchConv1d, PatchConvTranspose1d

        # 1. Encoder
        layers, width = [], 1
        for out_channels in channels:
            layers.append(convolution(width, out_channels, kernel_size, stride, padding))
            layers += [nn.BatchNorm1d(out_channels)] if norm == "batch" else []
            layers.append(ACTIVATIONS[encoder_act]())
            width = out_channels
        layers += [PositionPool(width, positions, pooled)] if pooled < positions else []
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * pooled, latent_dim))

        # 2. Decoder
        layers = [nn.Linear(latent_dim, width * pooled), nn.Unflatten(1, (width, pooled))]
        layers += [PositionSpread(width, positions, pooled)] if pooled < positions else []
        for out_channels in (*reversed(channels[:-1]), 1):
            layers.append(ACTIVATIONS[decoder_act]())
            layers.append(transposed(width, out_channels, kernel_size, stride, padding, output_padding))
            layers += [nn.BatchNorm1d(out_channels)] if norm == "batch" and out_channels != 1 else []
            width = out_channels
        self.decoder = nn.Sequential(*layers)

        # 3. Linear path
        self.components = PrincipalComponents(self.vector_length, latent_dim) if linear_path else None

    @classmethod
    def from_preset(cls, preset: str = "fast", **kwargs) -> "AutoencoderPDiff":
        """Build from the preset `"paper"` or `"fast"`; `kwargs` are constructor arguments and win."""
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}.")
        return cls(**{**PRESETS[preset], **kwargs})

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Fit the normaliser, and with `linear_path` the principal components, to raw training vectors `(K, D)`.

        Raises:
            ValueError: K is too small for the number of latent values.
        """
        self.normalizer.fit(vectors)
        if not self.config.linear_path:
            return
        self.components.fit(vectors, self.normalizer)
        for layer in (self.encoder[-1], self.decoder[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def run_trained_layers(self, batch_size: int) -> None:
        """Leave the components out: they are not trained, and take long vectors block by block."""
        self.decoder(self.encoder(torch.empty(batch_size, 1, self.padded_length, device=self.device)))

    def _encode(self, normalized: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(normalized, (0, self.padded_length - self.vector_length))
        latents = self.encoder(padded[:, None])
        return latents if self.components is None else latents + self.components.encode(normalized)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        normalized = self.decoder(latents)[:, 0, : self.vector_length]
        if self.components is None:
            return normalized
        return self.components.decode(latents).add_(normalized)

    def forward(
        self,
        sample: torch.Tensor,
        input_noise: torch.Tensor | None = None,
        latent_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        loss_only: bool = False,
    ) -> ParameterAutoencoderOutput | tuple[torch.Tensor, torch.Tensor, torch.Tensor] | torch.Tensor:
        """Encode and decode raw vectors.

        Args:
            sample (`torch.Tensor` of shape `(B, D)`): Raw parameter vectors.
            input_noise (`torch.Tensor` of shape `(B, D)`, *optional*): Standard normal noise, scaled by the config.
            latent_noise (`torch.Tensor` of shape `(B, C, L)`, *optional*): The same for the latents.
            return_dict (`bool`, *optional*, defaults to `True`): Return an output object instead of a tuple.
            loss_only (`bool`, *optional*, defaults to `False`): Leave `sample` out, which takes memory of twice the
                batch, and return the loss alone.
        """
        rows = max(1, block_values(sample.device) // self.vector_length)
        if loss_only and rows < len(sample) and self.config.norm == "none":
            return self._loss_in_chunks(rows, sample, input_noise, latent_noise)
        # 1. Normalise
        target = self.normalizer.normalize(sample)
        hidden = target if input_noise is None else torch.add(target, input_noise, alpha=self.config.input_noise)
        # 2. Encode
        latents = self._encode(hidden.to(self.dtype))
        hidden = latents if latent_noise is None else latents + self.config.latent_noise * latent_noise.flatten(1)
        # 3. Decode
        normalized = self._decode(hidden)
        loss = nn.functional.mse_loss(normalized.float(), target)
        if loss_only:
            return loss
        output = (self.normalizer.denormalize(normalized), latents.reshape(-1, *self.latent_shape), loss)
        return ParameterAutoencoderOutput(*output) if return_dict else output

    def _loss_in_chunks(self, rows: int, *tensors: torch.Tensor | None) -> torch.Tensor:
        """Loss of a batch of long vectors: activations of so many rows only are in memory, and computed twice."""
        size = len(tensors[0])
        losses = []
        for start in range(0, size, rows):
            chunk = [None if tensor is None else tensor[start : start + rows] for tensor in tensors]
            options = {"use_reentrant": False, "preserve_rng_state": False}
            loss = checkpoint(partial(self.forward, loss_only=True), *chunk, **options)
            losses.append(loss * len(chunk[0]) / size)
        return torch.stack(losses).sum()


class PositionPool(nn.Module):
    """Weighted sums over groups of neighbouring positions, every position with weights of its own.

    `(B, C, N)` → `(B, C, M)`, M < N, with 2·C·N values of weights and multiplications, where a dense layer would have
    C·N·C·M.
    """

    def __init__(self, channels: int, positions: int, pooled: int):
        super().__init__()
        self.group = -(-positions // pooled)
        self.padding = pooled * self.group - positions
        self.weight = nn.Parameter(torch.randn(channels, positions) * self.group**-0.5)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Pool `(B, C, N)`."""
        weighted = input * self.weight
        if self.padding:
            weighted = nn.functional.pad(weighted, (0, self.padding))
        return weighted.unflatten(2, (-1, self.group)).sum(3)


class PositionSpread(nn.Module):
    """The way back, `(B, C, M)` → `(B, C, N)`: each gets its group's values, scaled and shifted by own weights."""

    def __init__(self, channels: int, positions: int, pooled: int):
        super().__init__()
        self.group = -(-positions // pooled)
        self.weight = nn.Parameter(torch.randn(channels, positions))
        self.bias = nn.Parameter(torch.zeros(channels, positions))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Spread `(B, C, M)` to `(B, C, N)`."""
        spread = input.repeat_interleave(self.group, 2)[..., : self.weight.shape[1]]
        return torch.addcmul(self.bias, spread, self.weight)
