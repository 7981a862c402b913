"""The latents of a pipeline in its evaluation: their Gaussian, and whether draws are distributed as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..data.vectors import Vectors, split_rows, take_rows
from ..evaluation.baselines import GaussianOfRows, LatentSampler
from ..evaluation.distribution import GROUPS_COMPARED, compare_distributions
from ..evaluation.groups import GROUPS, GroupInputs
from ..models.auto import load_denoiser
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.unet_1d_condition import UNet1DConditionModel
from ..results.records import Distribution


def take_seen(originals: Vectors, holdout_every: int | None) -> Vectors:
    """Those originals `(K, D)` that a pipeline was trained on; all of them where it does not say so."""
    return originals if holdout_every is None else take_rows(originals, split_rows(len(originals), holdout_every)[0])


def fitted_gaussian(pipeline_dir: Path, autoencoder: ParameterAutoencoderMixin, seen: Vectors) -> LatentSampler:
    """The Gaussian of scaled latents that the denoiser of a pipeline contains.

    Of one that contains none, that of the latents of the originals `(K, D)` that it was trained on.
    """
    denoiser = load_denoiser(pipeline_dir / "unet")
    if isinstance(denoiser, UNet1DConditionModel):
        return denoiser.gaussian
    return GaussianOfRows(autoencoder.scale_latents(autoencoder.encode_rows(seen)))


def compare_latents(
    seen: Vectors,
    generated: Vectors,
    draw_latents: Callable[[int, torch.Generator], Vectors],
    originals: Vectors,
    autoencoder: ParameterAutoencoderMixin,
    holdout_every: int,
    n_effective: float | None,
    seed: int,
) -> dict[str, Distribution]:
    """[`compare_distributions`] of generated networks `(G, D)` and of baselines made of the originals `seen` `(S, D)`.

    `draw_latents` is that of [`GroupInputs`], the others are of [`compare_distributions`].
    """

    def latents_of(vectors: Vectors) -> torch.Tensor:
        return autoencoder.scale_latents(autoencoder.encode_rows(vectors)).flatten(1).cpu()

    latents = {"generated": latents_of(generated)}
    for name in GROUPS_COMPARED:
        generator = torch.Generator().manual_seed(seed)
        inputs = (seen, generated, autoencoder.layout, len(generated), generator)
        latents[name] = latents_of(GROUPS[name].make(GroupInputs(*inputs, draw_latents=draw_latents)))
    return compare_distributions(latents, latents_of(originals), holdout_every, n_effective, seed)
