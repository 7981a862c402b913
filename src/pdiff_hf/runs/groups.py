"""The groups of networks that the evaluation of a run compares."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from ..data.dataset import ParameterDataset
from ..data.order import RowOrder
from ..evaluation.autocorrelation import RunMemory
from ..evaluation.baselines import noised_latents
from ..evaluation.groups import build_groups, find_group
from ..evaluation.matching import align_networks
from ..evaluation.permutations import PermutationSpec, permutation_spec
from ..identity import NetworkIdentity, check_same_network, generated_identity
from ..layout import ParameterLayout
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.normalizer import ParameterNormalizer
from ..pipelines.network_folder import load_generated
from ..training.gate import reconstruct
from .folder import UNSEEN, Run

# What has to be done before there are generated networks.
GENERATOR_STAGES = ("autoencoder", "diffusion", "generate")


def generator_seconds(run: Run) -> float | None:
    """What the generated networks of a run cost, the checkpoints being there; `None` when the run does not know."""
    if not {"autoencoder", "diffusion"} <= run.stages.keys():
        return None
    return sum(run.stages[stage]["seconds"] for stage in GENERATOR_STAGES if stage in run.stages)


def known_permutations(model: nn.Module, layout: ParameterLayout, is_zoo: bool) -> PermutationSpec | None:
    """How hidden units may be permuted; `None` where that is not known, with a warning for a zoo that needs it."""
    try:
        return permutation_spec(model, layout)
    except ValueError as error:
        # Networks of one training have their units in one order.
        if is_zoo:
            warnings.warn(f"What needs weight matching is left out: {error}.", stacklevel=2)
    return None


def make_groups(
    originals: torch.Tensor,
    generated: torch.Tensor,
    autoencoder: ParameterAutoencoderMixin,
    draw_latents: Callable[[int, torch.Generator], torch.Tensor],
    val_worth: Callable[[torch.Tensor], torch.Tensor] | None,
    apart: tuple[torch.Tensor, torch.Tensor] | None,
    permutations: PermutationSpec | None,
    seed: int,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """As [`build_groups`], with reconstructions of originals.

    Where originals were held out that are independent of those seen, `apart` of [`unseen_runs`], everything is made of
    those seen, and the held-out ones are reconstructed. On a trajectory all are: a held-out row is as good as seen.
    """
    seen = held_out = torch.arange(len(originals))
    given = {}
    begin = time.perf_counter()
    if apart is not None:
        seen, held_out = apart
        aligned = None if permutations is None else align_networks(originals[seen], permutations)
        noise_latents = partial(noised_latents, originals[seen], autoencoder)
        given = {"noise_latents": noise_latents, "aligned": aligned, "is_zoo": True}
    alignment = time.perf_counter() - begin
    rows = held_out[torch.linspace(0, len(held_out) - 1, min(len(held_out), len(generated))).round().long()]
    reconstructed = reconstruct(autoencoder, originals[rows])
    inputs = (originals[seen], generated, autoencoder.layout, reconstructed, val_worth, seed, draw_latents)
    groups, seconds = build_groups(*inputs, **given)
    for name in seconds.keys() & {"matched_soup", "matched_gaussian"}:
        seconds[name] += alignment
    return {**groups, "original": originals}, seconds


def add_own_groups(
    run: Run,
    dataset: ParameterDataset,
    groups: dict[str, torch.Tensor],
    seconds: dict[str, float],
    n_effective: dict[str, float],
    normalizer: ParameterNormalizer,
) -> None:
    """Add what only a run's own folder holds and knows: further groups, and what its generator cost."""
    if (run.folder / UNSEEN).is_dir():
        unseen = ParameterDataset(run.folder / UNSEEN)
        # They are kept without a base model, beside that of the dataset.
        own = NetworkIdentity.of(dataset.folder, dataset.layout)
        check_same_network(unseen.identity, own, "make the ablation again")
        groups[UNSEEN] = unseen.vectors(rows=slice(None))
        n_effective[UNSEEN] = RunMemory.measure(groups[UNSEEN], unseen.order, normalizer).count_independent()
    if spent := generator_seconds(run):
        seconds["generated"] = spent
        if run.is_complete("fine_tune"):
            advice = "remove them, and they are made again"
            check_same_network(dataset.identity, generated_identity(run.path("fine_tune")), advice)
            groups["fine_tuned"] = tuned = load_generated(run.path("fine_tune"), dataset.layout)
            memory = RunMemory.measure(tuned, RowOrder.of_runs(len(tuned)), normalizer)
            n_effective["fine_tuned"] = memory.count_independent()
            seconds["fine_tuned"] = spent


def add_cost_of_generated(groups: Mapping[str, torch.Tensor], seconds: dict[str, float]) -> None:
    """What is made of generated networks costs what they cost, too; nothing is known of it when that is not."""
    for name in groups:
        if find_group(name).role == "generated_average":
            own = seconds.pop(name)
            if "generated" in seconds:
                seconds[name] = own + seconds["generated"]
