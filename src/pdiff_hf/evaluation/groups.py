"""The groups of networks that a report compares."""

from __future__ import annotations

from functools import partial

import torch

from ..layout import ParameterLayout
from .baselines import averages, gaussian, interpolations, noised_originals, pca_gaussian, uniform_soup

# Every baseline maps (originals (K, D), layout, number of draws, generator) to networks (n, D).
BASELINES = {
    "uniform_soup": lambda originals, layout, num, generator: uniform_soup(originals),
    "average_16": lambda originals, layout, num, generator: averages(originals, num, generator),
    "noise_0.05": partial(noised_originals, sigma=0.05),
    "noise_0.1": partial(noised_originals, sigma=0.1),
    "gaussian": gaussian,
    "pca_gaussian": pca_gaussian,
    "interpolation": lambda originals, layout, num, generator: interpolations(originals, num, generator),
}


def build_groups(
    originals: torch.Tensor,
    generated: torch.Tensor,
    layout: ParameterLayout,
    reconstructed: torch.Tensor | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Make the groups of a report; baselines get as many draws as there are generated networks.

    Args:
        originals (`torch.Tensor` of shape `(K, D)`): Rows of the parameter dataset.
        generated (`torch.Tensor` of shape `(G, D)`): Networks out of the pipeline.
        layout ([`ParameterLayout`]): Which slice of a vector is which tensor.
        reconstructed (`torch.Tensor` of shape `(R, D)`, *optional*): Originals that went through the autoencoder.
        seed (`int`, *optional*, defaults to 0): Every baseline starts from this seed, so adding one changes no other.

    Returns:
        `dict[str, torch.Tensor]`: `original`, `reconstructed` (if given), `generated` and every baseline.
    """
    groups = {"original": originals}
    if reconstructed is not None:
        groups["reconstructed"] = reconstructed
    groups["generated"] = generated
    for name, baseline in BASELINES.items():
        groups[name] = baseline(originals, layout, len(generated), torch.Generator().manual_seed(seed))
    return groups
