"""What both training stages take of few checkpoints: latents, held-out rows and a gate that follow their number."""

from __future__ import annotations

from .config import AutoencoderConfig, DiffusionConfig

# Fewer held-out checkpoints say little about an autoencoder: the gate then speaks, and does not refuse.
MIN_HELD_OUT = 3
# Fewer checkpoints than these show little of what networks can be.
FEW = 50
MIN_ROWS = 3


def num_held_out(num_rows: int, holdout_every: int) -> int:
    """How many of the rows are kept from training, see `pdiff_hf.data.vectors.split_rows`."""
    return len(range(holdout_every // 2, num_rows, holdout_every))


def fit_to_rows(
    autoencoder: AutoencoderConfig, diffusion: DiffusionConfig, num_rows: int
) -> tuple[AutoencoderConfig, DiffusionConfig, list[str]]:
    """Both sections as so many checkpoints need them, and in words what that changes.

    Only what nobody gave follows the number of checkpoints: how many are held out, the number of latent values, which
    is at most one less than the checkpoints that are trained on, and whether the gate refuses.

    Args:
        autoencoder ([`AutoencoderConfig`]), diffusion ([`DiffusionConfig`]): The sections of the recipe.
        num_rows (`int`): Checkpoints of the parameter dataset.

    Raises:
        ValueError: there are fewer than 3.
    """
    if num_rows < MIN_ROWS and autoencoder.is_open("holdout_every"):
        raise ValueError(f"expected at least {MIN_ROWS} checkpoints to learn from, found {num_rows}; use more.")
    lines, kept = [], autoencoder
    if not num_held_out(num_rows, autoencoder.holdout_every) and autoencoder.is_open("holdout_every"):
        autoencoder = autoencoder.model_copy(update={"holdout_every": num_rows})
    held_out = num_held_out(num_rows, autoencoder.holdout_every)
    if held_out < MIN_HELD_OUT and autoencoder.is_open("allow_poor_reconstruction"):
        autoencoder = autoencoder.model_copy(update={"allow_poor_reconstruction": True})
    if num_rows - held_out < MIN_ROWS and diffusion.is_open("validate"):
        # Two rows: none can choose a step, so the Gaussian stays as it is.
        diffusion = diffusion.model_copy(update={"validate": "none", "steps": 1, "lr_warmup_steps": 0})
    if autoencoder.is_open("latent_channels") and autoencoder.is_open("latent_length"):
        autoencoder = autoencoder.fit_latents(diffusion, num_rows - held_out)
    if (size := autoencoder.num_latents) != kept.num_latents:
        lines.append(
            f"{num_rows} checkpoints: {size} latent value{'s' * (size > 1)} instead of {kept.num_latents}, of which "
            f"the {num_rows - held_out} that are trained on tell no more apart; {held_out} "
            f"{'is' if held_out == 1 else 'are'} held out."
        )
    if num_rows < FEW and lines:
        lines.append(
            f"Of {num_rows} checkpoints, expect networks between and around them, like an average of some, and hardly "
            "new ones; intervals will be wide."
        )
    return autoencoder, diffusion, lines
