"""Cheap ways to make networks out of originals, against which the generator must hold its own."""

from __future__ import annotations

import torch

from ..layout import ParameterLayout


def uniform_soup(originals: torch.Tensor) -> torch.Tensor:
    """The mean of all originals `(K, D)` as one network `(1, D)`.

    Source: Wortsman et al. 2022, arXiv 2203.05482.
    """
    return originals.double().mean(0, keepdim=True).to(originals.dtype)


def noised_originals(
    originals: torch.Tensor, layout: ParameterLayout, num: int, generator: torch.Generator, sigma: float
) -> torch.Tensor:
    """Random originals with Gaussian noise of `sigma` times the standard deviation of each tensor's own elements.

    Source: Wang et al. 2024, arXiv 2402.13144, §4. Tensors with the `log` transform get the noise on their
    logarithm, so variances stay positive.

    Args:
        originals (`torch.Tensor` of shape `(K, D)`): Raw parameter values.
        layout ([`ParameterLayout`]): Which slice of a vector is which tensor.
        num (`int`): Number of networks; originals are drawn with replacement.
        generator (`torch.Generator`): Source of randomness.
        sigma (`float`): Noise level.

    Returns:
        `torch.Tensor` of shape `(num, D)`.
    """
    networks = originals[torch.randint(len(originals), (num,), generator=generator)]
    for spec in layout.tensors:
        values = networks[:, spec.offset : spec.offset + spec.numel]
        is_log = spec.transform == "log"
        values = values.log() if is_log else values
        scale = sigma * values.std(1, correction=0, keepdim=True)
        values = values + scale * torch.randn(values.shape, generator=generator)
        networks[:, spec.offset : spec.offset + spec.numel] = values.exp() if is_log else values
    return networks
