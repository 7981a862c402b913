"""How many latent values a dataset is large enough for."""

from __future__ import annotations

from .autoencoder import split_rows
from .config import AutoencoderConfig, DiffusionConfig


def fit_latents(autoencoder: AutoencoderConfig, diffusion: DiffusionConfig, num_rows: int) -> AutoencoderConfig:
    """The configuration with no more latent values than so many checkpoints can tell apart.

    Where latents start at principal components (`kind: pca`, `preset: fast`), K training rows span K - 1
    directions, so at most C·L = K - 1 latent values. L stays as it is as long as one channel fits, else it becomes the
    largest that fits and that the denoiser takes; C is then the largest that fits, never larger than before.
    Configurations that fit are returned as they are.

    Args:
        autoencoder ([`AutoencoderConfig`]): With the wanted latents.
        diffusion ([`DiffusionConfig`]): Whose resolutions divide L.
        num_rows (`int`): Checkpoints of the dataset, those that are held out for the gate included.

    Raises:
        ValueError: there are too few checkpoints for any latents.
    """
    if autoencoder.kind == "none" or (autoencoder.kind == "pdiff" and autoencoder.preset == "paper"):
        return autoencoder
    most = len(split_rows(num_rows, autoencoder.holdout_every)[0]) - 1
    channels, length = autoencoder.latent_channels, autoencoder.latent_length
    if channels * length <= most:
        return autoencoder
    shortest = 2 ** (len(diffusion.block_out_channels) - 1)
    if length > most:
        length = most // shortest * shortest
    if length == 0:
        raise ValueError(
            f"expected checkpoints for at least {shortest} latent values, {shortest + 1} without those held out, "
            f"found {most + 1} of {num_rows}; use more checkpoints."
        )
    return autoencoder.model_copy(update={"latent_channels": min(channels, most // length), "latent_length": length})
