"""p-diff as published beside another generator of a zoo: the same rows seen, the default autoencoder and denoiser."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from ..data.dataset import ParameterDataset
from ..evaluation.matching import align_networks
from ..evaluation.permutations import PermutationSpec
from ..layout import ParameterLayout
from ..machine import process_state
from ..models.auto import AUTOENCODERS, DENOISERS
from ..pipelines.network_folder import load_generated
from ..pipelines.sampling import load_pipeline
from ..training.autoencoder import train_autoencoder
from ..training.diffusion import train_diffusion
from .generate import generate_networks

RIVALS = ("pdiff", "pdiff_aligned")
# Of the rows seen, so many at most are latent values: some are kept to choose the step.
LATENTS_SHARE, MIN_LATENTS = 0.75, 2


def make_rivals(
    wanted: Collection[str],
    originals: torch.Tensor,
    layout: ParameterLayout,
    seen: torch.Tensor,
    holdout_every: int,
    num: int,
    permutations: PermutationSpec | None,
    seed: int,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Networks `(num, D)` of the `wanted` of [`RIVALS`] by name, and what each took, in seconds.

    All processes of `accelerate launch` have to call. `pdiff_aligned` is left out of networks that [`align_networks`]
    does not know, and both of zoos with too few rows.

    Args:
        originals (`torch.Tensor` of shape `(K, D)`): All rows; those held out are in the gate, which may be missed.
        seen (`torch.Tensor` of shape `(S,)`): Rows that are trained on, those that `holdout_every` leaves.
        permutations ([`PermutationSpec`], *optional*): Of the networks, where their units may be permuted.
    """
    latents = min(AUTOENCODERS["pdiff"]().latent_channels, int(LATENTS_SHARE * len(seen)))
    networks, seconds = {}, {}
    for name in wanted if latents >= MIN_LATENTS else ():
        begin, vectors = time.perf_counter(), originals
        if name == "pdiff_aligned":
            if permutations is None:
                continue
            vectors = originals.clone()
            vectors[seen] = align_networks(originals[seen], permutations)
        autoencoder = AUTOENCODERS["pdiff"](
            holdout_every=holdout_every, latent_channels=latents, allow_poor_reconstruction=True, seed=seed
        )
        networks[name] = _generate(vectors, layout, autoencoder, num, seed)
        seconds[name] = time.perf_counter() - begin
    return networks, seconds


def _generate(vectors: torch.Tensor, layout: ParameterLayout, autoencoder, num: int, seed: int) -> torch.Tensor:
    state = process_state()
    with tempfile.TemporaryDirectory() as own:
        # All processes work in the folder of the first one.
        folder = Path(broadcast_object_list([own])[0] if state.num_processes > 1 else own)
        if state.is_main_process:
            ParameterDataset.write(vectors, layout, folder / "dataset")
        state.wait_for_everyone()
        dataset = ParameterDataset(folder / "dataset")
        train_autoencoder(dataset, folder / "autoencoder", autoencoder)
        denoiser = DENOISERS["unet_1d_condition"](seed=seed)
        train_diffusion(dataset, folder / "autoencoder", folder / "pipeline", denoiser)
        generate_networks(load_pipeline(folder / "pipeline"), folder / "generated", num, seed=seed)
        networks = load_generated(folder / "generated", layout)
        state.wait_for_everyone()
    return networks
