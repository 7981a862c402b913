"""The groups of networks that the evaluation of a run compares."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn

from ..data.dataset import ParameterDataset
from ..data.order import RowOrder
from ..data.vectors import Vectors, take_rows
from ..evaluation.autocorrelation import RunMemory
from ..evaluation.baselines import noised_latents
from ..evaluation.groups import GROUPS, Groups
from ..evaluation.matching import align_networks
from ..evaluation.permutations import PermutationSpec, permutation_spec
from ..identity import NetworkIdentity, check_same_network, generated_identity
from ..layout import ParameterLayout
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.normalizer import ParameterNormalizer
from ..pipelines.network_folder import load_generated
from ..tasks.runs_config import begins_at_base
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


def common_start(dataset: ParameterDataset, model: nn.Module) -> torch.Tensor | None:
    """Where all trainings of a dataset's rows began `(1, D)`: its base model, where a recipe went on from that."""
    return dataset.layout.flatten(model)[None].cpu() if begins_at_base(dataset.metadata) else None


def make_groups(
    originals: Vectors,
    generated: Vectors,
    autoencoder: ParameterAutoencoderMixin,
    draw_latents: Callable[[int, torch.Generator], Vectors],
    val_worth: Callable[[Vectors], torch.Tensor] | None,
    apart: tuple[torch.Tensor, torch.Tensor] | None,
    permutations: PermutationSpec | None,
    seed: int,
    cost_of_generated: float | None = None,
    start: torch.Tensor | None = None,
) -> Groups:
    """[`Groups`] of a run, with reconstructions of originals.

    Where originals were held out that are independent of those seen, `apart` of [`unseen_runs`], everything is made of
    those seen, and the held-out ones are reconstructed. On a trajectory all are: a held-out row is as good as seen.

    What is made of generated networks costs what they cost, too, `cost_of_generated` seconds; nothing is known of it
    when that is not. `start` `(1, D)` is where all trainings of the originals began, where that is known.
    """
    seen = held_out = torch.arange(len(originals))
    given = {}
    begin = time.perf_counter()
    if apart is not None:
        seen, held_out = apart
        aligned = None if permutations is None else align_networks(take_rows(originals, seen), permutations)
        noise_latents = partial(noised_latents, take_rows(originals, seen), autoencoder)
        given = {"noise_latents": noise_latents, "aligned": aligned, "is_zoo": True}
    alignment = time.perf_counter() - begin
    before: dict[str, float | None] = dict.fromkeys(("matched_soup", "matched_gaussian"), alignment)
    before |= {name: cost_of_generated for name, group in GROUPS.items() if group.role == "generated_average"}
    rows = held_out[torch.linspace(0, len(held_out) - 1, min(len(held_out), len(generated))).round().long()]
    reconstructed = reconstruct(autoencoder, take_rows(originals, rows))
    inputs = (take_rows(originals, seen), generated, autoencoder.layout, reconstructed, seed, before)
    given |= {"start": start, "has_peft": find_spec("peft") is not None}
    groups = Groups(*inputs, val_worth=val_worth, draw_latents=draw_latents, **given)
    if not given["has_peft"] and val_worth is not None:
        warnings.warn("Without peft, TIES and DARE are left out: pip install 'pdiff-hf[adapters]'.", stacklevel=2)
    groups.give("original", originals)
    return groups


def add_own_groups(
    run: Run,
    dataset: ParameterDataset,
    groups: Groups,
    n_effective: dict[str, float],
    normalizer: ParameterNormalizer,
) -> None:
    """Add what only a run's own folder holds and knows: further groups, and what its generator cost."""
    if (run.folder / UNSEEN).is_dir():
        unseen = ParameterDataset(run.folder / UNSEEN)
        # They are kept without a base model, beside that of the dataset.
        own = NetworkIdentity.of(dataset.folder, dataset.layout)
        check_same_network(unseen.identity, own, "make the ablation again")
        networks = unseen.vectors()
        groups.give(UNSEEN, networks)
        n_effective[UNSEEN] = RunMemory.measure(networks, unseen.order, normalizer).count_independent()
    if spent := generator_seconds(run):
        groups.seconds["generated"] = spent
        if run.is_complete("fine_tune"):
            advice = "remove them, and they are made again"
            check_same_network(dataset.identity, generated_identity(run.path("fine_tune")), advice)
            tuned = load_generated(run.path("fine_tune"), dataset.layout)
            groups.give("fine_tuned", tuned)
            memory = RunMemory.measure(tuned, RowOrder.of_runs(len(tuned)), normalizer)
            n_effective["fine_tuned"] = memory.count_independent()
            groups.seconds["fine_tuned"] = spent
