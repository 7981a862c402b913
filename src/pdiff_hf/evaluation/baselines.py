"""Cheap ways to make networks out of originals, against which the generator must hold its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from ..layout import ParameterLayout

if TYPE_CHECKING:
    from ..models.autoencoder_base import ParameterAutoencoderMixin

# Deviations that SWAG's low-rank part is made of; Source: Maddox et al. 2019, arXiv 1902.02476, §5.
SWAG_RANK = 20


class LatentSampler(Protocol):
    """What draws scaled latents `(num, C, L)`."""

    def sample(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw them with a generator of the CPU."""


def uniform_soup(originals: torch.Tensor) -> torch.Tensor:
    """The mean of all originals `(K, D)` as one network `(1, D)`.

    Source: Wortsman et al. 2022, arXiv 2203.05482.
    """
    return originals.double().mean(0, keepdim=True).to(originals.dtype)


def greedy_soup(originals: torch.Tensor, worth: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The mean of those originals `(K, D)` that do not make it worse, tried from the best on, `(1, D)`.

    Source: Wortsman et al. 2022, arXiv 2203.05482, recipe 1.

    `worth` says of networks `(n, D)` what they are worth `(n,)` on the validation examples, such as their accuracies.
    """
    values = worth(originals)
    order = values.argsort(descending=True, stable=True)
    total, size, best = originals[order[0]].double(), 1, values[order[0]]
    for row in order[1:]:
        candidate = total + originals[row].double()
        found = worth((candidate / (size + 1)).to(originals.dtype)[None])[0]
        if found >= best:
            total, size, best = candidate, size + 1, found
    return (total / size).to(originals.dtype)[None]


def noised_originals(
    originals: torch.Tensor, layout: ParameterLayout, num: int, generator: torch.Generator, sigma: float
) -> torch.Tensor:
    """Originals, drawn with replacement, with noise of `sigma` times each tensor's own standard deviation, `(num, D)`.

    Source: Wang et al. 2024, arXiv 2402.13144, §4. Tensors with the `log` transform get the noise on their
    logarithm, so variances stay positive.
    """
    rows = torch.randint(len(originals), (num,), generator=generator)
    networks = _log_tensors(originals[rows], layout, torch.log)
    for spec in (spec for spec in layout.tensors if spec.numel):
        values = networks[:, spec.offset : spec.offset + spec.numel]
        scale = sigma * values.std(1, correction=0, keepdim=True)
        values += scale * torch.randn(values.shape, generator=generator)
    return _log_tensors(networks, layout, torch.exp)


def averages(originals: torch.Tensor, num: int, generator: torch.Generator, size: int = 16) -> torch.Tensor:
    """Means of `size` different random originals each (all of them when there are fewer), `(num, D)`.

    Source: Zeng et al. 2025, arXiv 2506.07998, which finds them as good as p-diff's networks.
    """
    size = min(size, len(originals))
    rows = [torch.randperm(len(originals), generator=generator)[:size] for _ in range(num)]
    return torch.stack([uniform_soup(originals[row])[0] for row in rows])


def interpolations(originals: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
    """Points between two different random originals each, uniform on the segment, `(num, D)`."""
    if len(originals) < 2:
        return originals[:1].repeat(num, 1)
    pairs = torch.stack([torch.randperm(len(originals), generator=generator)[:2] for _ in range(num)])
    return torch.lerp(originals[pairs[:, 0]], originals[pairs[:, 1]], torch.rand(num, 1, generator=generator))


def gaussian(originals: torch.Tensor, layout: ParameterLayout, num: int, generator: torch.Generator) -> torch.Tensor:
    """Draws `(num, D)` from a Gaussian fitted to every coordinate alone; `log` tensors are fitted in log space.

    Source: Zeng et al. 2025, arXiv 2506.07998.
    """
    values = _log_tensors(originals, layout, torch.log)
    noise = torch.randn(num, originals.shape[1], generator=generator)
    return _log_tensors(values.mean(0) + noise * values.std(0, correction=0), layout, torch.exp)


def pca_gaussian(
    originals: torch.Tensor, layout: ParameterLayout, num: int, generator: torch.Generator
) -> torch.Tensor:
    """Draws `(num, D)` from the Gaussian with the mean and the covariance of all weights, in all principal components.

    `log` tensors are fitted in log space.
    """
    fitted = GaussianOfRows(_log_tensors(originals, layout, torch.log)[..., None])
    return _log_tensors(fitted.sample(num, generator)[..., 0], layout, torch.exp)


class GaussianOfRows:
    """The Gaussian that has the mean and the covariance of latents `(K, C, L)`, also where they are few."""

    def __init__(self, latents: torch.Tensor):
        self._mean = latents.mean(0)
        self._deviations = (latents - self._mean) / max(1, len(latents) - 1) ** 0.5

    def sample(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw latents `(num, C, L)`: combinations of the rows' deviations from their mean, with normal weights."""
        weights = torch.randn(num, len(self._deviations), generator=generator)
        return self._mean + torch.einsum("nk,kcl->ncl", weights.to(self._deviations), self._deviations)


@torch.no_grad()
def latent_gaussian(
    gaussian: LatentSampler, autoencoder: ParameterAutoencoderMixin, num: int, generator: torch.Generator
) -> torch.Tensor:
    """Draws `(num, D)` from a Gaussian of scaled latents, decoded by the autoencoder."""
    latents = autoencoder.unscale_latents(gaussian.sample(num, generator).to(autoencoder.device))
    return torch.cat([block.cpu() for block in autoencoder.decode_rows(latents)])


@torch.no_grad()
def noised_latents(
    originals: torch.Tensor,
    autoencoder: ParameterAutoencoderMixin,
    num: int,
    generator: torch.Generator,
    sigma: float = 0.3,
) -> torch.Tensor:
    """Latents of originals, drawn with replacement, with noise of `sigma` times each value's own standard deviation.

    Decoded by the autoencoder, `(num, D)`: near copies, where an autoencoder is good.
    """
    latents = autoencoder.encode_rows(originals)
    drawn = latents[torch.randint(len(latents), (num,), generator=generator).to(latents.device)]
    noise = torch.randn(drawn.shape, generator=generator).to(latents)
    return torch.cat([block.cpu() for block in autoencoder.decode_rows(drawn + sigma * latents.std(0) * noise)])


def swag(
    originals: torch.Tensor, layout: ParameterLayout, num: int, generator: torch.Generator, rank: int = SWAG_RANK
) -> torch.Tensor:
    """Draws `(num, D)` from SWAG's Gaussian: half of the covariance diagonal, half of low rank.

    `mean + std * z1 / sqrt(2) + deviations.T @ z2 / sqrt(2 * (rank - 1))`, where the deviations are those of the last
    `rank` originals from the running mean at their time; the originals are taken in their order. `log` tensors are
    fitted in log space. Source: Maddox et al. 2019, arXiv 1902.02476, §3.2.
    """
    values = _log_tensors(originals, layout, torch.log)
    rank = min(rank, len(values))
    total = values[: len(values) - rank].double().sum(0)
    deviations = torch.empty(rank, values.shape[1], dtype=values.dtype)
    for index, row in enumerate(range(len(values) - rank, len(values))):
        total += values[row]
        deviations[index] = values[row] - total / (row + 1)
    mean, std = values.mean(0), values.std(0, correction=0)
    diagonal = std * torch.randn(num, values.shape[1], generator=generator) / 2**0.5
    weights = torch.randn(num, rank, generator=generator).to(values.dtype)
    low_rank = weights @ deviations / (2 * max(1, rank - 1)) ** 0.5
    return _log_tensors(mean + diagonal + low_rank, layout, torch.exp)


def _log_tensors(vectors: torch.Tensor, layout: ParameterLayout, function) -> torch.Tensor:
    """`function` applied to the tensors that have the `log` transform, on a copy."""
    vectors = vectors.clone()
    for spec in layout.tensors:
        if spec.transform == "log":
            own = slice(spec.offset, spec.offset + spec.numel)
            vectors[:, own] = function(vectors[:, own])
    return vectors
