"""Principal components of many more columns than rows, streamed over column blocks."""

from __future__ import annotations

import torch

from .normalizer import ParameterNormalizer

# Columns of one block are chosen so that a float32 block of all rows stays near 64 MB.
BLOCK_VALUES = 2**24


def principal_components(
    vectors: torch.Tensor, normalizer: ParameterNormalizer, num_components: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exact PCA of normalised vectors by the K×K Gram matrix ("method of snapshots", Sirovich 1987).

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`):
            Raw parameter vectors; read block of columns by block of columns.
        normalizer ([`ParameterNormalizer`]):
            Fitted normaliser.
        num_components (`int`):
            Number of components k, at most K - 1.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Type in which the basis is kept.

    Returns:
        `tuple`: mean `(D,)`, basis with orthonormal rows `(k, D)`, and the standard deviation of the data along each
        component `(k,)`, all of the normalised vectors.

    Raises:
        ValueError: there are not more checkpoints than components, or the checkpoints span fewer directions.
    """
    num_rows, num_columns = vectors.shape
    if num_components > num_rows - 1:
        raise ValueError(
            f"{num_components} latent values need at least {num_components + 1} training checkpoints, got {num_rows}. "
            "Collect more checkpoints or lower latent_channels × latent_length."
        )
    width = max(1, BLOCK_VALUES // num_rows)
    starts = range(0, num_columns, width)
    mean = torch.empty(num_columns, device=vectors.device)
    gram = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=vectors.device)
    for start in starts:
        block = normalizer.normalize(vectors[:, start : start + width], start)
        mean[start : start + width] = block.mean(0)
        block = (block - mean[start : start + width]).double()
        gram += block @ block.T
    # 1. Eigenvectors of the Gram matrix, largest first
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    eigenvalues, eigenvectors = eigenvalues.flip(0)[:num_components], eigenvectors.flip(1)[:, :num_components]
    if eigenvalues[-1] <= 1e-10 * eigenvalues[0]:
        rank = int((eigenvalues > 1e-10 * eigenvalues[0]).sum())
        raise ValueError(
            f"the checkpoints span only {rank} directions, fewer than the {num_components} latent values asked for. "
            "Lower latent_channels × latent_length or collect more varied checkpoints."
        )
    # 2. Basis rows: right singular vectors
    projection = (eigenvectors / eigenvalues.sqrt()).T.float()
    basis = torch.empty(num_components, num_columns, dtype=dtype, device=vectors.device)
    for start in starts:
        block = normalizer.normalize(vectors[:, start : start + width], start) - mean[start : start + width]
        basis[:, start : start + width] = (projection @ block).to(dtype)
    return mean, basis, (eigenvalues / (num_rows - 1)).sqrt().float()
