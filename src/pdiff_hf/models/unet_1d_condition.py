"""The denoiser of the default: the closed form for a Gaussian, and a 1-D UNet for what a Gaussian does not know."""

import itertools
import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.utils import BaseOutput
from torch import nn

from .condition_regression import ConditionRegression
from .gaussian import LatentGaussian
from .patches import PatchConv1d, PatchConvTranspose1d

# Sines and cosines of a timestep.
TIME_FREQUENCIES = 64
# Conditions, or rows, without which there is nothing to regress on.
MIN_UNITS = 3
# Share of the variance of the latents that a regression has to predict.
MIN_EXPLAINED = 0.01

CLASS_EMBED_TYPES = (None, "timestep", "identity", "projection", "simple_projection")


@dataclass
class UNet1DConditionOutput(BaseOutput):
    """Output of [`UNet1DConditionModel`]: noise, velocity or clean latents `(B, C, L)`, by its `prediction_type`."""

    sample: torch.Tensor


class UNet1DConditionModel(ModelMixin, ConfigMixin):
    r"""A denoiser of latents `(B, C, L)` that contains the best one of a Gaussian.

    Its output is that of [`LatentGaussian`], a closed form that [`~UNet1DConditionModel.fit_gaussian`] sets, plus that
    of a 1-D UNet which begins at zero: before the first step of training it is exactly the denoiser of a Gaussian with
    the latents' mean and covariance. Told a condition, it is that of a Gaussian around a regression, a
    [`ConditionRegression`] of the condition. Each level of the UNet halves the length, as long as it is even. Over one
    position all its convolutions are matrix products.

    Parameters:
        sample_size (`int`): Length L of the latents.
        in_channels (`int`): Channels C of the latents.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(256,)`): Channels of each level.
        layers_per_block (`int`, *optional*, defaults to 1): Residual layers of each level, on the way down and up.
        time_embed_dim (`int`, *optional*): Values of the embedding of time and condition, a quarter of the channels of
            the first level, at least 64, by default.
        prediction_type (`str`, *optional*, defaults to `"v_prediction"`): `epsilon`, `v_prediction` or `sample`.
        num_train_timesteps (`int`, *optional*, defaults to 1000): Of the noise schedule.
        class_embed_type (`str`, *optional*): What `class_labels` are, as for [`UNet2DConditionModel`]: `None`
            (indices, with `num_class_embeds`), `"timestep"` (numbers), `"identity"` (embeddings), `"projection"` or
            `"simple_projection"` (vectors of `projection_class_embeddings_input_dim` values).
        num_class_embeds (`int`, *optional*): Number of classes, for indices.
        projection_class_embeddings_input_dim (`int`, *optional*): Values of a condition, for projections.
        class_dropout_prob (`float`, *optional*, defaults to 0.1): Share of the conditions that training replaces by
            the learned null vector, so that the model also knows the distribution without a condition (Source: Ho and
            Salimans 2022, arXiv 2207.12598).
        num_condition_centers (`int`, *optional*): Kernels of the regression on conditions, which
            [`~UNet1DConditionModel.fit_gaussian`] sets; without it, the closed form knows no condition.
        num_open_centers (`int`, *optional*): Kernels of another regression, on conditions of which something is left
            open, around which latents are spread wider. The second half of the `class_labels` then says of every
            number of the first half if it is known, 1, or left open, 0, see [`PartialConditions`].
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = [  # noqa: RUF012 - diffusers' declaration
        "gaussian",
        "conditional_gaussian",
        "regression",
        "open_gaussian",
        "open_regression",
    ]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 1,
        in_channels: int = 32,
        block_out_channels: tuple[int, ...] = (256,),
        layers_per_block: int = 1,
        time_embed_dim: int | None = None,
        prediction_type: str = "v_prediction",
        num_train_timesteps: int = 1000,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
        class_dropout_prob: float = 0.1,
        num_condition_centers: int | None = None,
        num_open_centers: int | None = None,
    ):
        super().__init__()
        self.gaussian = LatentGaussian((in_channels, sample_size), num_train_timesteps, prediction_type)
        self._know_conditions(num_condition_centers, num_open_centers)

        # 1. Time and condition
        width = block_out_channels[0]
        embedding = time_embed_dim or max(TIME_FREQUENCIES, width // 4)
        self.time_proj = _Timesteps()
        self.time_embedding = TimestepEmbedding(TIME_FREQUENCIES, embedding)
        self.class_embedding = _class_embedding(
            embedding, class_embed_type, num_class_embeds, projection_class_embeddings_input_dim
        )
        self.null_embedding = None if self.class_embedding is None else nn.Parameter(torch.zeros(embedding))

        # 2. Down, middle, up
        lengths = [sample_size]
        for _ in block_out_channels[1:]:
            lengths.append(lengths[-1] if lengths[-1] % 2 else lengths[-1] // 2)
        levels = [(width, sample_size), *zip(block_out_channels, lengths, strict=True)]
        self.conv_in = _conv(in_channels, width, sample_size)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for outer, inner in itertools.pairwise(levels):
            self.down_blocks.append(_DownBlock(*outer, *inner, embedding, layers_per_block))
            self.up_blocks.insert(0, _UpBlock(*inner, *outer, embedding, layers_per_block))
        channels, length = levels[-1]
        self.mid_block = _ResidualLayer(channels, embedding, length)

        # 3. Out: nothing, before it is trained
        self.norm_out = _Norm(width)
        self.conv_out = _conv(width, in_channels, sample_size)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.gradient_checkpointing = False

    def fit_gaussian(
        self,
        latents: torch.Tensor,
        scheduler: SchedulerMixin,
        class_labels: torch.Tensor | None = None,
        units: torch.Tensor | None = None,
        open_labels: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Set the closed form to mean and covariance of scaled latents `(K, C, L)`, and to a scheduler's noise.

        With conditions it is also set to a regression on them and to the covariance of what that does not predict of
        rows left out, if it predicts something; so it is for those of which something is left open.

        Args:
            class_labels (`torch.Tensor` of shape `(K, n)`, *optional*): Conditions of the rows, for projections.
            units (`torch.Tensor` of shape `(K,)`, *optional*): Numbers of what is left out at once; by default all
                rows of a condition are.
            open_labels (`torch.Tensor` of shape `(r · K, n)`, *optional*): What is said of the rows, of all of them r
                times in turn, where something may be left open, see `num_open_centers`.

        Returns:
            `torch.Tensor` of shape `(K, C·L)`: what the regression expects of the rows without their units, the
            `class_means` to train with; `None` without a regression.

        Raises:
            ValueError: as [`LatentGaussian.fit`].
        """
        self.gaussian.fit(latents)
        self.gaussian.set_schedule(scheduler)
        if class_labels is None:
            return None
        if units is None:
            units = class_labels.unique(dim=0, return_inverse=True)[1]
        self._know_conditions(None)
        if len(units.unique()) < MIN_UNITS or (class_labels == class_labels[0]).all():
            return None
        regression = ConditionRegression(class_labels.shape[1], len(self.gaussian.mean), 1)
        residuals = regression.fit(class_labels, latents.flatten(1), units)
        covariance = residuals.T @ residuals / len(residuals)
        if covariance.trace() > (1 - MIN_EXPLAINED) * self.gaussian.variances.sum().item():
            return None
        of_open = None
        if open_labels is not None:
            rows = _is_open(open_labels).flatten().nonzero().flatten()
            of_row = rows % len(latents)
            if len(units[of_row].unique()) >= MIN_UNITS:
                of_open = ConditionRegression(open_labels.shape[1], len(self.gaussian.mean), 1)
                left = of_open.fit(open_labels[rows], latents.flatten(1)[of_row], units[of_row])
        self._know_conditions(len(regression.centers), None if of_open is None else len(of_open.centers))
        self.regression.load_state_dict(regression.state_dict())
        self.conditional_gaussian.set_covariance(covariance)
        self.conditional_gaussian.set_schedule(scheduler)
        if of_open is not None:
            self.open_regression.load_state_dict(of_open.state_dict())
            self.open_gaussian.set_covariance(left.T @ left / len(left))
            self.open_gaussian.set_schedule(scheduler)
        return latents.flatten(1) - residuals.to(latents)

    @property
    def explained(self) -> float | None:
        """Share of the latents' variance that the regression predicts of conditions left out; `None` without one."""
        if self.regression is None:
            return None
        return 1 - (self.conditional_gaussian.variances.sum() / self.gaussian.variances.sum()).item()

    def _know_conditions(self, num_centers: int | None, num_open_centers: int | None = None) -> None:
        """Give the closed form what it needs for regressions with so many kernels, or nothing for `None`."""
        self.register_to_config(num_condition_centers=num_centers, num_open_centers=num_open_centers)
        self.regression = self.conditional_gaussian = self.open_regression = self.open_gaussian = None
        if num_centers is None:
            return
        size, device = self.config.projection_class_embeddings_input_dim, self.gaussian.mean.device
        if size is None:
            raise ValueError("num_condition_centers needs projection_class_embeddings_input_dim.")
        shape, options = self.gaussian.latent_shape, (self.config.num_train_timesteps, self.config.prediction_type)
        self.conditional_gaussian = LatentGaussian(shape, *options).to(device)
        self.regression = ConditionRegression(size, math.prod(shape), num_centers).to(device)
        if num_open_centers is not None:
            self.open_gaussian = LatentGaussian(shape, *options).to(device)
            self.open_regression = ConditionRegression(size, math.prod(shape), num_open_centers).to(device)

    def check_scheduler(self, scheduler: SchedulerMixin) -> None:
        """Raise `ValueError` for a scheduler that the closed form is not for."""
        self.gaussian.check_schedule(scheduler)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        force_drop_ids: torch.Tensor | None = None,
        class_means: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet1DConditionOutput | tuple[torch.Tensor]:
        """Predict noise, velocity or clean latents.

        Args:
            sample (`torch.Tensor` of shape `(B, C, L)`): Noisy latents, as the scheduler scales them for its model.
            timestep (`torch.Tensor` or `float`): One, or `(B,)`; it may lie between two of training.
            class_labels (`torch.Tensor`, *optional*): Conditions `(B,)` or `(B, n)`, by `class_embed_type`; all of
                them are unknown by default.
            force_drop_ids (`torch.Tensor` of shape `(B,)`, `bool`, *optional*): Rows whose condition is unknown; while
                training they are drawn by default.
            class_means (`torch.Tensor` of shape `(B, C·L)`, *optional*): What is expected of the conditions, in the
                place of what the regression says: of rows that it was fitted to it knows too much.
            return_dict (`bool`, *optional*, defaults to `True`): Return an output object instead of a tuple.

        Raises:
            ValueError: `class_labels` for a model without conditions.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        if class_labels is not None and force_drop_ids is None and self.training:
            force_drop_ids = torch.rand(len(sample), device=sample.device) < self.config.class_dropout_prob
        embedding = self._embed(timestep, class_labels, force_drop_ids)
        residual = self._residual(sample.to(self.conv_in.weight.dtype), embedding)
        output = self.closed_form(sample, timestep, class_labels, force_drop_ids, class_means) + residual
        output = output.to(sample.dtype)
        return UNet1DConditionOutput(sample=output) if return_dict else (output,)

    def closed_form(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        force_drop_ids: torch.Tensor | None = None,
        class_means: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is best for Gaussian latents `(B, C, L)`, float32; arguments as of the model."""
        if class_labels is None or self.regression is None:
            return self.gaussian(sample, timestep)
        class_means = self.regression(class_labels) if class_means is None else class_means
        found = self.conditional_gaussian(sample, timestep, class_means)
        if self.open_regression is not None:
            of_open = self.open_gaussian(sample, timestep, self.open_regression(class_labels))
            found = torch.where(_is_open(class_labels)[:, None], of_open, found)
        if force_drop_ids is None:
            return found
        return torch.where(force_drop_ids[:, None, None], self.gaussian(sample, timestep), found)

    def expected(self, class_labels: torch.Tensor) -> torch.Tensor:
        """What the regression expects of latents with conditions `(B, n)`, float32 `(B, C·L)`."""
        found = self.regression(class_labels)
        if self.open_regression is None:
            return found
        return torch.where(_is_open(class_labels), self.open_regression(class_labels), found)

    def _embed(
        self, timestep: torch.Tensor, class_labels: torch.Tensor | None, force_drop_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """What every residual layer is told `(B, E)`."""
        embedding = self.time_embedding(self.time_proj(timestep).to(self.conv_in.weight.dtype))
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("this denoiser knows no conditions; leave class_labels out.")
            return nn.functional.silu(embedding)
        condition = self.null_embedding.expand_as(embedding)
        if class_labels is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels)
            if class_labels.is_floating_point():
                class_labels = class_labels.to(self.conv_in.weight.dtype)
            given = self.class_embedding(class_labels).to(embedding.dtype)
            condition = given if force_drop_ids is None else torch.where(force_drop_ids[:, None], condition, given)
        return nn.functional.silu(embedding + condition)

    def _residual(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """The UNet's own output `(B, C, L)`."""
        hidden = self.conv_in(hidden)
        skips = []
        for block in self.down_blocks:
            hidden, states = self._run(block, hidden, embedding)
            skips += states
        hidden = self._run(self.mid_block, hidden, embedding)
        for block in self.up_blocks:
            hidden = self._run(block, hidden, embedding, *(skips.pop() for _ in block.layers))
        return self.conv_out(nn.functional.silu(self.norm_out(hidden)))

    def _run(self, block: nn.Module, *inputs: torch.Tensor):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


def _is_open(class_labels: torch.Tensor) -> torch.Tensor:
    """Conditions `(B, 1)` of which something is left open."""
    return (class_labels.chunk(2, 1)[1] == 0).any(1, keepdim=True)


def _class_embedding(
    width: int, kind: str | None, num_classes: int | None, num_values: int | None
) -> nn.Module | None:
    """The module that embeds conditions in `width` values, `None` without conditions."""
    if kind not in CLASS_EMBED_TYPES:
        raise ValueError(f"class_embed_type must be one of {CLASS_EMBED_TYPES}, got {kind!r}.")
    if kind is None:
        return None if num_classes is None else nn.Embedding(num_classes, width)
    if kind == "identity":
        return nn.Identity()
    if kind == "timestep":
        return TimestepEmbedding(TIME_FREQUENCIES, width)
    if num_values is None:
        raise ValueError(f"class_embed_type={kind!r} needs projection_class_embeddings_input_dim.")
    return TimestepEmbedding(num_values, width) if kind == "projection" else nn.Linear(num_values, width)


class _Timesteps(nn.Module):
    """diffusers' `Timesteps`, with frequencies that are computed once for a device: cosines, then sines `(B, F)`."""

    def __init__(self):
        super().__init__()
        # Not a buffer: one that is not saved would be without values in a model that diffusers loads.
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        device, half = timesteps.device, TIME_FREQUENCIES // 2
        if device not in self._frequencies:
            exponents = torch.arange(half, dtype=torch.float32, device=device) / half
            self._frequencies[device] = torch.exp(-math.log(10_000) * exponents)
        angles = timesteps[:, None] * self._frequencies[device]
        return torch.cat([angles.cos(), angles.sin()], 1)


class _Norm(nn.GroupNorm):
    """`nn.GroupNorm` with one group; over one position it is a layer norm, several times faster as such."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.shape[2] > 1:
            return super().forward(input)
        flat = nn.functional.layer_norm(input.flatten(1), (self.num_channels,), self.weight, self.bias, self.eps)
        return flat[:, :, None]


def _conv(inputs: int, outputs: int, length: int) -> nn.Conv1d:
    """A convolution that keeps the length, over three positions where there are several."""
    return nn.Conv1d(inputs, outputs, 3, padding=1) if length > 1 else PatchConv1d(inputs, outputs, 1)


class _ResidualLayer(nn.Module):
    """norm → SiLU → convolution → + embedding → norm → SiLU → convolution, added to what came in.

    The layers of the way up also see what one on the way down gave, `state`.
    """

    def __init__(self, channels: int, embedding: int, length: int, num_states: int = 0):
        super().__init__()
        inputs = (1 + num_states) * channels
        self.norm1, self.conv1 = _Norm(inputs), _conv(inputs, channels, length)
        self.time_emb_proj = nn.Linear(embedding, channels)
        self.norm2, self.conv2 = _Norm(channels), _conv(channels, channels, length)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        own = self.conv1(nn.functional.silu(self.norm1(torch.cat([hidden, *states], 1) if states else hidden)))
        own = own + self.time_emb_proj(embedding)[:, :, None]
        return hidden + self.conv2(nn.functional.silu(self.norm2(own)))


class _DownBlock(nn.Module):
    """Residual layers of a level, after the way to it from the level before."""

    def __init__(self, inputs: int, longer: int, channels: int, length: int, embedding: int, num_layers: int):
        super().__init__()
        stride = longer // length
        self.downsampler = nn.Identity()
        if (inputs, longer) != (channels, length):
            self.downsampler = PatchConv1d(inputs, channels, stride, stride)
        layers = [_ResidualLayer(channels, embedding, length) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden, states = self.downsampler(hidden), []
        for layer in self.layers:
            hidden = layer(hidden, embedding)
            states.append(hidden)
        return hidden, states


class _UpBlock(nn.Module):
    """Residual layers of a level, each with what one on the way down gave, and the way to the level before."""

    def __init__(self, channels: int, length: int, outputs: int, longer: int, embedding: int, num_layers: int):
        super().__init__()
        layers = [_ResidualLayer(channels, embedding, length, num_states=1) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        stride = longer // length
        self.upsampler = nn.Identity()
        if (outputs, longer) != (channels, length):
            self.upsampler = PatchConvTranspose1d(channels, outputs, stride, stride)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        for layer, state in zip(self.layers, states, strict=True):
            hidden = layer(hidden, embedding, state)
        return self.upsampler(hidden)
