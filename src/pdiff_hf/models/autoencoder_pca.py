"""The closed-form linear autoencoder, for whole networks of millions of parameters."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .autoencoder_base import ParameterAutoencoderMixin
from .config import latent_arguments
from .normalizer import BLOCK_VALUES, ParameterNormalizer, block_values
from .precision import without_autocast

# Above it, all eigenvectors of a symmetric matrix take minutes.
MAX_SNAPSHOTS = 4096

BASIS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class AutoencoderPCA(ParameterAutoencoderMixin, ModelMixin, ConfigMixin):
    r"""Principal component analysis of normalised parameter vectors, with the interface of [`AutoencoderPDiff`].

    `encode` gives the scores along the components divided by their standard deviation, `decode` the linear way back.
    Nothing is trained by gradients: [`~AutoencoderPCA.fit_statistics`] is exact and costs three passes over the data.

    Parameters:
        num_parameters, layout, normalization, scaling_factor, shift_factor: See [`AutoencoderPDiff`].
        latent_channels (`int`), latent_length (`int`): C and L; C·L components are kept.
        basis_dtype (`str`, *optional*, defaults to `"float32"`): In which the C·L × D basis is stored, the only thing
            that is large: `float32`, `bfloat16` or `float16`. Sums are float32 in any case.
    """

    @register_to_config
    def __init__(
        self,
        num_parameters: int | None = None,
        layout: dict | None = None,
        normalization: str = "per_tensor",
        latent_channels: int = 32,
        latent_length: int = 1,
        basis_dtype: str = "float32",
        scaling_factor: float | list[float] = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        self._init_common()
        self.components = PrincipalComponents(self.vector_length, latent_channels * latent_length, basis_dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation; the basis may be stored in a narrower one."""
        return self.components.mean.dtype

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor) -> None:
        """Fit normaliser, mean and basis to raw training vectors `(K, D)`, a tensor or [`StoredVectors`].

        Raises:
            ValueError: K is too small for the number of components.
        """
        self.normalizer.fit(vectors)
        self.components.fit(vectors, self.normalizer)

    @torch.no_grad()
    def encode_rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """Encode many raw vectors `(K, D)` to float32 latents `(K, C, L)`, in one pass over blocks of columns."""
        scores = torch.zeros(len(vectors), len(self.components.deviations), device=self.device)
        for columns in self._blocks(len(vectors)):
            block = vectors[:, columns].to(self.device)
            scores += self.components.encode(self.normalizer.normalize(block, columns.start), columns.start)
        return scores.reshape(-1, *self.latent_shape)

    @torch.no_grad()
    def reconstruct_blocks(self, vectors: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Encode and decode many raw vectors, block by block of columns; see [`ParameterAutoencoderMixin`]."""
        scores = self.encode_rows(vectors).flatten(1)
        for columns in self._blocks(len(vectors)):
            normalized = self.components.decode(scores, columns.start, columns.stop)
            yield slice(0, len(vectors)), columns, self.normalizer.denormalize(normalized, columns.start)

    def _blocks(self, num_rows: int) -> Iterator[slice]:
        width = max(1, BLOCK_VALUES // max(1, num_rows))
        starts = range(0, self.vector_length, width)
        return (slice(start, min(start + width, self.vector_length)) for start in starts)

    def _encode(self, normalized: torch.Tensor) -> torch.Tensor:
        return self.components.encode(normalized)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.components.decode(latents)


class PrincipalComponents(nn.Module):
    """Mean and orthonormal directions of normalised vectors; scores have variance 1 along each of them.

    Buffers, not parameters: nothing here is trained. Products are accumulated in the type of the input over blocks of
    columns, whatever the basis is stored in: `float32`, `bfloat16` or `float16`.
    """

    def __init__(self, num_parameters: int, num_components: int, dtype: str = "float32"):
        super().__init__()
        if dtype not in BASIS_DTYPES:
            raise ValueError(f"basis_dtype must be one of {sorted(BASIS_DTYPES)}, got {dtype!r}.")
        self.register_buffer("mean", torch.zeros(num_parameters))
        self.register_buffer("basis", torch.zeros(num_components, num_parameters, dtype=BASIS_DTYPES[dtype]))
        self.register_buffer("deviations", torch.ones(num_components))

    @torch.no_grad()
    def fit(self, vectors: torch.Tensor, normalizer: ParameterNormalizer) -> None:
        """Fit to raw vectors `(K, D)`, see [`principal_components`]."""
        # Freed first: there would be two of them.
        components, dtype = len(self.basis), self.basis.dtype
        self.basis = None
        self.mean, self.basis, self.deviations = principal_components(vectors, normalizer, components, dtype)

    def encode(self, normalized: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Contribution of columns `start … start + n`, `(B, n)`, to the scores `(B, k)`: the sum over all is they."""
        scores = normalized.new_zeros(len(normalized), len(self.deviations))
        with without_autocast(normalized.device):
            for first in range(0, normalized.shape[1], self._width):
                columns = slice(start + first, min(start + first + self._width, start + normalized.shape[1]))
                block = normalized[:, first : first + self._width] - self.mean[columns].to(normalized.dtype)
                scores += block @ self.basis[:, columns].to(normalized.dtype).T
        return scores / self.deviations.to(scores.dtype)

    def decode(self, scores: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Columns `start … stop`, `(B, stop - start)`, of the normalised vectors with scores `(B, k)`."""
        scores = scores * self.deviations.to(scores.dtype)
        stop = len(self.mean) if stop is None else stop
        width = stop - start if self.basis.dtype == scores.dtype else self._width
        blocks = [slice(first, min(first + width, stop)) for first in range(start, stop, width)]
        with without_autocast(scores.device):
            parts = [
                torch.addmm(self.mean[columns].to(scores.dtype), scores, self.basis[:, columns].to(scores.dtype))
                for columns in blocks
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @property
    def _width(self) -> int:
        return max(1, block_values(self.basis.device) // len(self.deviations))


@torch.no_grad()
def principal_components(
    vectors: torch.Tensor, normalizer: ParameterNormalizer, num_components: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exact PCA of normalised vectors by the K×K Gram matrix ("method of snapshots", Sirovich 1987).

    Args:
        vectors (`torch.Tensor` or [`StoredVectors`] of shape `(K, D)`): Raw; read twice, by blocks of columns.
        normalizer ([`ParameterNormalizer`]): Fitted.
        num_components (`int`): Number of components k, at most K - 1.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type in which the basis is kept.

    Returns:
        `tuple`: mean `(D,)`, basis with orthonormal rows `(k, D)`, and the standard deviation of the data along each
        component `(k,)`, all of the normalised vectors, on the normaliser's device.

    Raises:
        ValueError: there are not more checkpoints than components, or the checkpoints span fewer directions.
    """
    num_rows, num_columns = vectors.shape
    if num_components > num_rows - 1:
        raise ValueError(
            f"{num_components} latent values need at least {num_components + 1} training checkpoints, got {num_rows}. "
            f"Collect more checkpoints or take fewer latent values, {latent_arguments()}."
        )
    device = normalizer.mean.device
    if num_rows > MAX_SNAPSHOTS and num_columns < num_rows:
        return _by_covariance(vectors, normalizer, num_components, dtype)
    width = max(1, BLOCK_VALUES // num_rows)
    starts = range(0, num_columns, width)
    mean = torch.empty(num_columns, device=device)
    gram = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=device)
    for start in starts:
        block = normalizer.normalize(vectors[:, start : start + width].to(device), start)
        mean[start : start + width] = block.mean(0)
        block = (block - mean[start : start + width]).double()
        gram += block @ block.T
    # 1. Eigenvectors of the Gram matrix, largest first
    eigenvalues, eigenvectors = _leading(gram, num_components)
    # 2. Basis rows: right singular vectors
    projection = (eigenvectors / eigenvalues.sqrt()).T.float()
    basis = torch.empty(num_components, num_columns, dtype=dtype, device=device)
    for start in starts:
        block = normalizer.normalize(vectors[:, start : start + width].to(device), start) - mean[start : start + width]
        basis[:, start : start + width] = (projection @ block).to(dtype)
    return mean, basis, (eigenvalues / (num_rows - 1)).sqrt().float()


def _by_covariance(
    vectors: torch.Tensor, normalizer: ParameterNormalizer, num_components: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[`principal_components`] by the D×D covariance, the smaller matrix; vectors are read by blocks of rows."""
    device, num_rows = normalizer.mean.device, len(vectors)
    parts = torch.arange(num_rows).split(max(1, BLOCK_VALUES // vectors.shape[1]))

    def blocks() -> Iterator[torch.Tensor]:
        return (normalizer.normalize(vectors[rows].to(device), 0).double() for rows in parts)

    mean = sum(block.sum(0) for block in blocks()) / num_rows
    scatter = sum(block.T @ block for block in (block - mean for block in blocks()))
    eigenvalues, eigenvectors = _leading(scatter, num_components)
    return mean.float(), eigenvectors.T.to(dtype).contiguous(), (eigenvalues / (num_rows - 1)).sqrt().float()


def _leading(matrix: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues `(number,)` of a symmetric matrix and their vectors `(n, number)`, largest first.

    Raises:
        ValueError: it has a lower rank.
    """
    if len(matrix) > MAX_SNAPSHOTS and number < len(matrix) // 4:
        # Lanczos' method, in a tenth of the time; from a start of its own it would give other signs every time.
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(len(matrix))
        found = eigsh(matrix.cpu().numpy(), number, which="LA", v0=start)
        eigenvalues, eigenvectors = (torch.from_numpy(part).to(matrix) for part in found)
    else:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    eigenvalues, eigenvectors = eigenvalues.flip(0)[:number], eigenvectors.flip(1)[:, :number]
    if eigenvalues[-1] <= 1e-10 * eigenvalues[0]:
        rank = int((eigenvalues > 1e-10 * eigenvalues[0]).sum())
        raise ValueError(
            f"the checkpoints span only {rank} directions, fewer than the {number} latent values asked for. "
            f"Collect more varied checkpoints or take fewer latent values, {latent_arguments()}."
        )
    return eigenvalues, eigenvectors
