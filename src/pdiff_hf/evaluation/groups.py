"""The groups of networks that a report compares."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from ..layout import ParameterLayout
from .baselines import (
    averages,
    gaussian,
    greedy_soup,
    interpolations,
    noised_originals,
    pca_gaussian,
    swag,
    uniform_soup,
)

# Every baseline maps (originals (K, D), layout, number of draws, generator) to networks (n, D).
BASELINES = {
    "uniform_soup": lambda originals, layout, num, generator: uniform_soup(originals),
    "average_16": lambda originals, layout, num, generator: averages(originals, num, generator),
    "noise_0.05": partial(noised_originals, sigma=0.05),
    "noise_0.1": partial(noised_originals, sigma=0.1),
    "gaussian": gaussian,
    "pca_gaussian": pca_gaussian,
    "swag": swag,
    "interpolation": lambda originals, layout, num, generator: interpolations(originals, num, generator),
}
# The groups of a report, in its order.
GROUPS = ("original", "reconstructed", "generated", "uniform_soup", "greedy_soup", *list(BASELINES)[1:], "fine_tuned")


def build_groups(
    originals: torch.Tensor,
    generated: torch.Tensor,
    layout: ParameterLayout,
    reconstructed: torch.Tensor | None = None,
    val_accuracy: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Make the groups of a report; baselines get as many draws as there are generated networks.

    Args:
        originals (`torch.Tensor` of shape `(K, D)`): Rows of the parameter dataset, in the order of the training run.
        generated (`torch.Tensor` of shape `(G, D)`): Networks out of the pipeline.
        layout ([`ParameterLayout`]): Which slice of a vector is which tensor.
        reconstructed (`torch.Tensor` of shape `(R, D)`, *optional*): Originals that went through the autoencoder.
        val_accuracy (`Callable`, *optional*): Accuracies `(n,)` of networks `(n, D)` on the validation images, for
            the greedy soup; without it there is none.
        seed (`int`, *optional*, defaults to 0): Every baseline starts from this seed, so adding one changes no other.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, float]]`: networks by group name, `original`, `reconstructed` (if
        given), `generated` and every baseline; and the seconds that making each baseline took.
    """
    groups = {"original": originals, "reconstructed": reconstructed, "generated": generated}
    seconds = {}
    for name in GROUPS:
        start = time.perf_counter()
        if name in BASELINES:
            groups[name] = BASELINES[name](originals, layout, len(generated), torch.Generator().manual_seed(seed))
        elif name == "greedy_soup" and val_accuracy is not None:
            groups[name] = greedy_soup(originals, val_accuracy)
        else:
            continue
        seconds[name] = time.perf_counter() - start
    return {name: vectors for name, vectors in groups.items() if vectors is not None}, seconds
