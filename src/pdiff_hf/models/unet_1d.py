"""The configuration of diffusers' `UNet1DModel` that works on latents."""

import torch
from diffusers import UNet1DModel
from torch import nn

# Where many small operations cost no more than a large one; where tensors have no values, memory is counted for these.
FAST_DEVICES = ("cpu", "meta")

# Above this many output positions the convolution kernels of the libraries are faster.
MAX_POSITIONS = 8

# Beyond, mish(x) is x in float32.
LINEAR_ABOVE = 20.0


def make_unet_1d(
    latent_channels: int,
    latent_length: int,
    block_out_channels: tuple[int, ...] = (64, 128),
    layers_per_block: int = 1,
) -> UNet1DModel:
    """Build the denoiser for latents of shape `(B, latent_channels, latent_length)`.

    `UNet1DModel`'s own defaults cannot run. The residual block family below, with as many up blocks as down blocks, a
    positional time embedding and a padded frequency shift, is the one that keeps every skip connection and the length.

    Args:
        latent_channels (`int`): Channels C of the latents.
        latent_length (`int`): Length L of the latents, divisible by `2 ** (len(block_out_channels) - 1)`.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 128)`): Channels of each resolution, each
            divisible by 8.
        layers_per_block (`int`, *optional*, defaults to 1): Residual layers of each block.

    Returns:
        [`UNet1DModel`]: maps noisy latents `(B, C, L)` and timesteps `(B,)` to the predicted noise `(B, C, L)`.

    Raises:
        ValueError: a width is not divisible by 8, or the length by the downsampling factor.
    """
    levels = len(block_out_channels)
    factor = 2 ** (levels - 1)
    if latent_length % factor:
        raise ValueError(f"latent_length must be divisible by {factor} for {levels} resolutions, got {latent_length}.")
    if any(channels % 8 for channels in block_out_channels):
        raise ValueError(f"block_out_channels must be divisible by 8 (GroupNorm), got {tuple(block_out_channels)}.")
    return UNet1DModel(
        sample_size=latent_length,
        in_channels=latent_channels,
        out_channels=latent_channels,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1.0,
        act_fn="mish",
        down_block_types=("DownResnetBlock1D",) * levels,
        up_block_types=("UpResnetBlock1D",) * levels,
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
    )


class _ShortConv1d(torch.autograd.Function):
    """One matrix product for every output position, over exactly the inputs that its window holds."""

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int):
        taps, length = weight.shape[2], inputs.shape[2]
        outputs = (length + 2 * padding - taps) // stride + 1
        # Position-major, so that windows of inputs and of taps are matrices without copies.
        rows, matrix = inputs.mT.contiguous(), weight.permute(2, 1, 0).contiguous()
        windows = []
        for position in range(outputs):
            first = position * stride - padding
            start, stop = max(first, 0), min(first + taps, length)
            windows.append((start, stop, start - first, stop - first))
        result = rows.new_empty(len(rows), outputs, weight.shape[0])
        for position, (start, stop, low, high) in enumerate(windows):
            window, kernel = rows[:, start:stop].flatten(1), matrix[low:high].flatten(0, 1)
            result[:, position] = window @ kernel if bias is None else torch.addmm(bias, window, kernel)
        ctx.save_for_backward(rows, matrix)
        ctx.windows, ctx.has_bias = windows, bias is not None
        return result.mT

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        rows, matrix = ctx.saved_tensors
        gradient = gradient.mT.contiguous()
        rows_gradient, matrix_gradient = torch.zeros_like(rows), torch.zeros_like(matrix)
        for position, (start, stop, low, high) in enumerate(ctx.windows):
            own = gradient[:, position]
            matrix_gradient[low:high].flatten(0, 1).addmm_(rows[:, start:stop].flatten(1).T, own)
            if ctx.needs_input_grad[0]:
                window = own @ matrix[low:high].flatten(0, 1).T
                rows_gradient[:, start:stop] += window.unflatten(1, (stop - start, -1))
        bias_gradient = gradient.sum((0, 1)) if ctx.has_bias else None
        return rows_gradient.mT, matrix_gradient.permute(2, 1, 0), bias_gradient, None, None


class ShortConv1d(nn.Conv1d):
    """An `nn.Conv1d` with the same parameters and, to rounding, the same results; fast on a CPU, for small L.

    The libraries' kernels are made for long signals: at L <= 4 they reach a small part of the machine's rate. Longer
    ones are left to them, and so are dilation, groups and padding by name. On an accelerator it is an `nn.Conv1d`: one
    operation there, not one for every position.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve `(B, C, L)`."""
        (taps,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        plain = dilation == self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        outputs = (input.shape[-1] + 2 * self.padding[0] - taps) // stride + 1 if plain else 0
        device_type = input.device.type
        # Wider padding than that would make windows without any input.
        is_short = input.ndim == 3 and 0 < outputs <= MAX_POSITIONS and self.padding[0] < taps
        if device_type not in FAST_DEVICES or not is_short:
            return super().forward(input)
        weight, bias = self.weight, self.bias
        # The device `meta` knows no autocast.
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _ShortConv1d.apply(input, weight, bias, stride, self.padding[0])


class _Mish(torch.autograd.Function):
    """x·tanh(softplus(x)) = x·n / (n + 2) with n = e^x (e^x + 2)."""

    @staticmethod
    def forward(ctx, input: torch.Tensor) -> torch.Tensor:
        exponential = input.clamp(max=LINEAR_ABOVE).exp_()
        product = (exponential + 2).mul_(exponential)
        tanh = product / (product + 2)
        ctx.save_for_backward(input, exponential, tanh)
        return input * tanh

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        input, exponential, tanh = ctx.saved_tensors
        # d tanh(softplus(x)) / dx = (1 - tanh²) sigmoid(x)
        slope = (1 - tanh.square()).mul_(exponential).div_(exponential + 1)
        return slope.mul_(input).add_(tanh).mul_(gradient)


class FastMish(nn.Mish):
    """`nn.Mish` on a CPU with one exponential instead of an exponential, a logarithm and a hyperbolic tangent."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        # In half precision the powers would overflow.
        is_fast = input.dtype == torch.float32 and input.device.type in FAST_DEVICES
        return _Mish.apply(input) if is_fast else super().forward(input)


FAST = {nn.Conv1d: ShortConv1d, nn.Mish: FastMish}


def use_fast_layers(model: nn.Module) -> None:
    """Make every `nn.Conv1d` and `nn.Mish` of a model one that is fast on a CPU, in place; the state dict stays."""
    for module in model.modules():
        if type(module) in FAST:
            module.__class__ = FAST[type(module)]
