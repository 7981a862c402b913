"""The configuration of diffusers' `UNet1DModel` that works on latents."""

from diffusers import UNet1DModel


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
        latent_channels (`int`):
            Channels C of the latents.
        latent_length (`int`):
            Length L of the latents, divisible by `2 ** (len(block_out_channels) - 1)`.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 128)`):
            Channels of each resolution, each divisible by 8.
        layers_per_block (`int`, *optional*, defaults to 1):
            Residual layers of each block.

    Returns:
        [`UNet1DModel`]: maps noisy latents `(B, C, L)` and timesteps `(B,)` to the predicted noise `(B, C, L)`.

    Raises:
        ValueError: a width is not divisible by 8, or the length by the downsampling factor.
    """
    factor = 2 ** (len(block_out_channels) - 1)
    if latent_length % factor:
        raise ValueError(
            f"latent_length must be divisible by {factor} for {len(block_out_channels)} resolutions, "
            f"got {latent_length}."
        )
    if any(channels % 8 for channels in block_out_channels):
        raise ValueError(f"block_out_channels must be divisible by 8 (GroupNorm), got {tuple(block_out_channels)}.")
    levels = len(block_out_channels)
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
