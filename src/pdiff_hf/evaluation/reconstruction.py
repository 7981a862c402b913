"""How well vectors are reconstructed: the variance that is explained, of each kind of tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.normalizer import BLOCK_VALUES, ParameterNormalizer
from .tensor_kinds import KINDS


@torch.no_grad()
def explained_variances(
    autoencoder: ParameterAutoencoderMixin,
    train_vectors: torch.Tensor,
    heldout_vectors: torch.Tensor,
    columns: torch.Tensor | None = None,
) -> dict:
    """Measure how much of raw vectors decode(encode(x)) explains, in bounded memory.

    `1 - Σ(x - x̂)² / Σ(x - x̄)²` over rows and coordinates, x̄ the mean of the training rows, every coordinate divided
    by its standard deviation over all rows (`log` tensors as logarithms): in the space of `pdiff inspect`, where each
    coordinate that varies counts alike, in whatever unit it is.

    Args:
        autoencoder ([`ParameterAutoencoderMixin`]): In eval mode.
        train_vectors, heldout_vectors (`torch.Tensor` of shape `(K, D)`, `(H, D)`): Tensors or [`StoredVectors`].
        columns (`torch.Tensor` of shape `(D,)`, *optional*): Kinds, see [`column_kinds`]; all weights by default.

    Returns:
        `dict`: `explained_variance`, `explained_by_kind` of the held-out rows, see [`explained_by_kind`], and
        `train_explained_variance`, `train_explained_by_kind`.
    """
    mean, scale = _scales(autoencoder.normalizer, train_vectors, heldout_vectors)
    if columns is None:
        columns = torch.zeros(len(mean), dtype=torch.uint8)
    columns = columns.to(mean.device)
    transform, sums = autoencoder.normalizer.transform, {}
    for name, vectors in (("train", train_vectors), ("heldout", heldout_vectors)):
        residual, total = torch.zeros(2, len(KINDS), dtype=torch.float64)
        for rows, span, block in autoencoder.reconstruct_blocks(vectors):
            original = transform(vectors[rows, span].to(mean.device), span.start)
            errors = _square_sums(transform(block, span.start) - original, scale[span])
            spreads = _square_sums(original - mean[span], scale[span])
            for index in range(len(KINDS)):
                chosen = columns[span] == index
                residual[index] += errors[chosen].sum().item()
                total[index] += spreads[chosen].sum().item()
        sums[name] = residual, total
    train, heldout = (explained_by_kind(*sums[name]) for name in ("train", "heldout"))
    return {**{f"train_{key}": value for key, value in train.items()}, **heldout}


def _scales(
    normalizer: ParameterNormalizer, train_vectors: torch.Tensor, heldout_vectors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every coordinate `(D,)`, the mean over the training rows, and one over its deviation over all; 0 for none."""
    mean, scale = torch.empty(2, train_vectors.shape[1], device=normalizer.mean.device)
    width = max(1, BLOCK_VALUES // (len(train_vectors) + len(heldout_vectors)))
    for start in range(0, len(mean), width):
        span = slice(start, start + width)
        parts = [vectors[:, span].to(mean.device) for vectors in (train_vectors, heldout_vectors)]
        block = normalizer.transform(torch.cat(parts), start).double()
        mean[span] = block[: len(train_vectors)].mean(0)
        # Rounding gives a constant column a tiny deviation; only its range tells that it is constant.
        scale[span] = torch.where(block.amin(0) == block.amax(0), 0.0, 1 / block.std(0))
    return mean, scale


def _square_sums(block: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Sums over the rows of a block `(n, columns)` of its scaled values' squares, float64 `(columns,)`."""
    return (block.double() * scale).square_().sum(0)


def explained_by_kind(residual: torch.Tensor, total: torch.Tensor) -> dict:
    """Shares of variance that are explained, by the sums of squares of each of `KINDS`, `(kinds,)`.

    Returns:
        `dict`: `explained_variance` of all coordinates, and `explained_by_kind`, that of every kind of tensor which
        varies, by its name. Where nothing varies there is nothing to explain, which an exact copy does.
    """
    pairs = zip(KINDS, residual.tolist(), total.tolist(), strict=False)
    kinds = {kind: 1 - left / whole for kind, left, whole in pairs if whole > 0}
    left, whole = residual.sum().item(), total.sum().item()
    return {"explained_variance": 1 - left / whole if whole > 0 else float(left == 0), "explained_by_kind": kinds}


def poor_kinds(explained: Mapping[str, Any], least: float) -> list[str]:
    """The kinds of tensors of which less than a share `least` is explained, by what [`explained_by_kind`] gives.

    A gate compares each kind by itself: the many weights would hide what few norms and running statistics lack,
    without which a network computes something else.
    """
    return [kind for kind, share in shares_by_kind(explained).items() if not share >= least]


def shares_by_kind(explained: Mapping[str, Any], rows: str = "") -> Mapping[str, float]:
    """`explained_by_kind` of a report, of `"train_"` rows or of those held out; of all, where no kind is known."""
    return explained.get(f"{rows}explained_by_kind") or {"tensors": explained[f"{rows}explained_variance"]}
