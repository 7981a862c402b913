"""Cheap ways to make networks out of originals, against which the generator must hold its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import torch

from ..data.vectors import Vectors, column_slices, empty_vectors, row_slices
from ..layout import ParameterLayout

if TYPE_CHECKING:
    from ..models.autoencoder_base import ParameterAutoencoderMixin

# Deviations that SWAG's low-rank part is made of; Source: Maddox et al. 2019, arXiv 1902.02476, §5.
SWAG_RANK = 20

# Values of a block of originals, or of the networks made of them: it, and some copies, are in memory at a time.
BLOCK_VALUES = 2**21


class LatentSampler(Protocol):
    """What draws scaled latents `(num, C, L)`."""

    def sample(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw them with a generator of the CPU."""


def uniform_soup(originals: Vectors) -> torch.Tensor:
    """The mean of all originals `(K, D)` as one network `(1, D)`.

    Source: Wortsman et al. 2022, arXiv 2203.05482.
    """
    soup = torch.empty(1, originals.shape[1], dtype=originals.dtype, device=originals.device)
    for columns in column_slices(*originals.shape, BLOCK_VALUES):
        soup[:, columns] = originals[:, columns].double().mean(0, keepdim=True)
    return soup


def greedy_soup(originals: Vectors, worth: Callable[[Vectors], torch.Tensor]) -> torch.Tensor:
    """The mean of those originals `(K, D)` that do not make it worse, tried from the best on, `(1, D)`.

    Source: Wortsman et al. 2022, arXiv 2203.05482, recipe 1.

    `worth` says of networks `(n, D)` what they are worth `(n,)` on the validation examples, such as their accuracies.
    """
    values = worth(originals)
    order = values.argsort(descending=True, stable=True).tolist()
    total, size, best = originals[order[0] : order[0] + 1].double(), 1, values[order[0]]
    soup = total.to(originals.dtype)
    for number in order[1:]:
        row, candidate = originals[number : number + 1], torch.empty_like(soup)
        for columns in column_slices(1, soup.shape[1], BLOCK_VALUES):
            candidate[:, columns] = (total[:, columns] + row[:, columns]) / (size + 1)
        found = worth(candidate)[0]
        if found >= best:
            total += row
            soup, size, best = candidate, size + 1, found
    return soup


def noised_originals(
    originals: Vectors, layout: ParameterLayout, num: int, generator: torch.Generator, sigma: float
) -> Vectors:
    """Originals, drawn with replacement, with noise of `sigma` times each tensor's own standard deviation, `(num, D)`.

    Source: Wang et al. 2024, arXiv 2402.13144, §4. Tensors with the `log` transform get the noise on their
    logarithm, so variances stay positive.
    """
    drawn = torch.randint(len(originals), (num,), generator=generator)
    networks = empty_vectors(num, originals)
    for spec in (spec for spec in layout.tensors if spec.numel):
        columns = slice(spec.offset, spec.offset + spec.numel)
        noise = _Normals(num * spec.numel, generator)
        for rows in row_slices(num, spec.numel, BLOCK_VALUES):
            values = log_tensors(originals[drawn[rows].to(originals.device), columns], layout, torch.log, columns)
            scale = sigma * values.std(1, correction=0, keepdim=True)
            values = values + scale * noise.take(*values.shape).to(values)
            networks[rows, columns] = log_tensors(values, layout, torch.exp, columns)
    return networks


def averages(originals: Vectors, num: int, generator: torch.Generator, size: int = 16) -> Vectors:
    """Means of `size` different random originals each (all of them when there are fewer), `(num, D)`.

    Source: Zeng et al. 2025, arXiv 2506.07998, which finds them as good as p-diff's networks.
    """
    size = min(size, len(originals))
    drawn = [torch.randperm(len(originals), generator=generator)[:size] for _ in range(num)]
    drawn = [rows.to(originals.device) for rows in drawn]
    networks = empty_vectors(num, originals)
    for columns in column_slices(max(num, len(originals)), originals.shape[1], BLOCK_VALUES):
        block = originals[:, columns].double()
        networks[:, columns] = torch.stack([block[rows].mean(0) for rows in drawn]).to(originals.dtype)
    return networks


def interpolations(originals: Vectors, num: int, generator: torch.Generator) -> Vectors:
    """Points between two different random originals each, uniform on the segment, `(num, D)`."""
    if len(originals) < 2:
        return originals[:1].repeat(num, 1)
    pairs, weights = draw_pairs(len(originals), num, generator)
    first, second = pairs.T.to(originals.device)
    weights = weights.to(originals.device)
    networks = empty_vectors(num, originals)
    for columns in column_slices(max(num, len(originals)), originals.shape[1], BLOCK_VALUES):
        block = originals[:, columns]
        networks[:, columns] = torch.lerp(block[first], block[second], weights)
    return networks


def draw_pairs(num_originals: int, num: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two different random rows each `(num, 2)`, and places between them in [0, 1], `(num, 1)`."""
    pairs = torch.stack([torch.randperm(num_originals, generator=generator)[:2] for _ in range(num)])
    return pairs, torch.rand(num, 1, generator=generator)


def gaussian(originals: Vectors, layout: ParameterLayout, num: int, generator: torch.Generator) -> Vectors:
    """Draws `(num, D)` from a Gaussian fitted to every coordinate alone; `log` tensors are fitted in log space.

    Source: Zeng et al. 2025, arXiv 2506.07998.
    """
    mean, std = _moments(originals, layout)
    networks, noise = empty_vectors(num, originals), _Normals(num * originals.shape[1], generator)
    for rows, columns in _in_memory_order(num, originals.shape[1]):
        values = mean[columns] + noise.take(*_size(rows, columns)).to(mean) * std[columns]
        networks[rows, columns] = log_tensors(values, layout, torch.exp, columns)
    return networks


def pca_gaussian(originals: Vectors, layout: ParameterLayout, num: int, generator: torch.Generator) -> Vectors:
    """Draws `(num, D)` from the Gaussian with the mean and the covariance of all weights, in all principal components.

    `log` tensors are fitted in log space.
    """
    weights = torch.randn(num, len(originals), generator=generator)
    networks = empty_vectors(num, originals)
    for columns in column_slices(max(num, len(originals)), originals.shape[1], BLOCK_VALUES):
        fitted = GaussianOfRows(log_tensors(originals[:, columns], layout, torch.log, columns)[..., None])
        networks[:, columns] = log_tensors(fitted.combine(weights)[..., 0], layout, torch.exp, columns)
    return networks


class GaussianOfRows:
    """The Gaussian that has the mean and the covariance of latents `(K, C, L)`, also where they are few."""

    def __init__(self, latents: torch.Tensor):
        self._mean = latents.mean(0)
        self._deviations = (latents - self._mean) / max(1, len(latents) - 1) ** 0.5

    def sample(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Draw latents `(num, C, L)`: combinations of the rows' deviations from their mean, with normal weights."""
        return self.combine(torch.randn(num, len(self._deviations), generator=generator))

    def combine(self, weights: torch.Tensor) -> torch.Tensor:
        """Latents `(num, C, L)` with weights `(num, K)` of the rows."""
        return self._mean + torch.einsum("nk,kcl->ncl", weights.to(self._deviations), self._deviations)


@torch.no_grad()
def latent_gaussian(
    gaussian: LatentSampler, autoencoder: ParameterAutoencoderMixin, num: int, generator: torch.Generator
) -> Vectors:
    """Draws `(num, D)` from a Gaussian of scaled latents, decoded by the autoencoder."""
    return _decode(autoencoder, autoencoder.unscale_latents(gaussian.sample(num, generator).to(autoencoder.device)))


@torch.no_grad()
def noised_latents(
    originals: Vectors,
    autoencoder: ParameterAutoencoderMixin,
    num: int,
    generator: torch.Generator,
    sigma: float = 0.3,
) -> Vectors:
    """Latents of originals, drawn with replacement, with noise of `sigma` times each value's own standard deviation.

    Decoded by the autoencoder, `(num, D)`: near copies, where an autoencoder is good.
    """
    latents = autoencoder.encode_rows(originals)
    drawn = latents[torch.randint(len(latents), (num,), generator=generator).to(latents.device)]
    noise = torch.randn(drawn.shape, generator=generator).to(latents)
    return _decode(autoencoder, drawn + sigma * latents.std(0) * noise)


def _decode(autoencoder: ParameterAutoencoderMixin, latents: torch.Tensor) -> Vectors:
    """Networks `(num, D)` of latents `(num, C, L)`, in the memory of the machine or in a file."""
    networks, start = empty_vectors(len(latents), torch.empty(0, autoencoder.vector_length)), 0
    for block in autoencoder.decode_rows(latents):
        networks[start : start + len(block)] = block.cpu()
        start += len(block)
        # Or it would be there beside the next one.
        del block
    return networks


def swag(
    originals: Vectors, layout: ParameterLayout, num: int, generator: torch.Generator, rank: int = SWAG_RANK
) -> Vectors:
    """Draws `(num, D)` from SWAG's Gaussian: half of the covariance diagonal, half of low rank.

    `mean + std * z1 / sqrt(2) + deviations.T @ z2 / sqrt(2 * (rank - 1))`, where the deviations are those of the last
    `rank` originals from the running mean at their time; the originals are taken in their order. `log` tensors are
    fitted in log space. Source: Maddox et al. 2019, arXiv 1902.02476, §3.2.
    """
    rank = min(rank, len(originals))
    mean, std = _moments(originals, layout)
    networks, noise = empty_vectors(num, originals), _Normals(num * originals.shape[1], generator)
    for rows, columns in _in_memory_order(num, originals.shape[1]):
        diagonal = std[columns] * noise.take(*_size(rows, columns)).to(std) / 2**0.5
        networks[rows, columns] = mean[columns] + diagonal
    weights = torch.randn(num, rank, generator=generator).to(mean)
    first = len(originals) - rank
    for columns in column_slices(max(num, len(originals)), originals.shape[1], BLOCK_VALUES):
        values = log_tensors(originals[:, columns], layout, torch.log, columns)
        total, deviations = values[:first].double().sum(0), torch.empty_like(values[first:])
        for index, row in enumerate(range(first, len(values))):
            total += values[row]
            deviations[index] = values[row] - total / (row + 1)
        low_rank = weights @ deviations / (2 * max(1, rank - 1)) ** 0.5
        networks[:, columns] = log_tensors(networks[:, columns] + low_rank, layout, torch.exp, columns)
    return networks


def _moments(originals: Vectors, layout: ParameterLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation `(D,)` of every coordinate, of `log` tensors those of the logarithm."""
    mean, std = torch.empty(2, originals.shape[1], dtype=originals.dtype, device=originals.device)
    for columns in column_slices(*originals.shape, BLOCK_VALUES):
        values = log_tensors(originals[:, columns], layout, torch.log, columns)
        mean[columns], std[columns] = values.mean(0), values.std(0, correction=0)
    return mean, std


def log_tensors(values: torch.Tensor, layout: ParameterLayout, function: Callable, columns: slice) -> torch.Tensor:
    """`function` applied to what some columns `(n, w)` have of tensors with the `log` transform, on a copy."""
    values = values.clone()
    for spec in layout.tensors:
        if spec.transform == "log":
            start, stop = spec.offset - columns.start, spec.offset + spec.numel - columns.start
            own = slice(max(0, start), max(0, stop))
            values[:, own] = function(values[:, own])
    return values


def _in_memory_order(num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks of bounded size, one after another as the values of networks lie in memory."""
    for rows in row_slices(num_rows, num_columns, BLOCK_VALUES):
        for columns in column_slices(rows.stop - rows.start, num_columns, BLOCK_VALUES):
            yield rows, columns


def _size(rows: slice, columns: slice) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start


class _Normals:
    """The normal numbers of `torch.randn(num, generator=generator)`, of which only some are in memory."""

    # PyTorch makes float32 numbers of so many uniform ones together, and the last of them from the end.
    GROUP = 16

    def __init__(self, num: int, generator: torch.Generator):
        self._left, self._generator, self._drawn = num, generator, torch.empty(0)

    def take(self, *shape: int) -> torch.Tensor:
        """The next ones, in this shape."""
        num = math.prod(shape)
        if (missing := num - len(self._drawn)) > 0:
            size = -(-missing // self.GROUP) * self.GROUP
            size = self._left if self._left - size < self.GROUP else size
            self._left -= size
            own = torch.randn(size, generator=self._generator)
            self._drawn = torch.cat([self._drawn, own]) if len(self._drawn) else own
        found, self._drawn = self._drawn[:num], self._drawn[num:]
        return found.view(shape)
