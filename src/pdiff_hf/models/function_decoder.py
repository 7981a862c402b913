"""From latents of functions to parameters: offsets from a reference network, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class FunctionDecoder(nn.Module):
    """A perceptron that writes normalised parameters `(B, D)` of latents `(B, k)`: offsets from a reference network.

    The offset of a tensor of m rows of n values (units, and what goes into each), n > r, is a product of two matrices:
    m × r, written by the perceptron, and r × n, the same for all networks. Offsets of smaller tensors are written
    value by value. So the last layer does not grow with n: a dense one would have `width * D` weights, and most of the
    time of a step would be spent on them. Latents, whose mean is 0, are multiplied by a buffer `gain`, 1 in training.

    Args:
        shapes (`Sequence[Sequence[int]]`): Of the D parameters' tensors, in their order.
        num_latents (`int`): k.
        hidden (`Sequence[int]`): Widths of the perceptron's layers.
        rank (`int`): r, at most.
        max_mb (`int`): Memory of all weights in MiB, float32; the rank is as low as it has to be. Training takes four
            times as much.

    Raises:
        ValueError: `max_mb` is too little for rank 1.
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], num_latents: int, hidden: Sequence[int], rank: int, max_mb: int
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = num_latents
        for size in hidden:
            layers += [nn.Linear(width, size), nn.SiLU()]
            width = size
        matrices = [_matrix(shape) for shape in shapes]
        room = max_mb * 2**18 - sum(weight.numel() for layer in layers for weight in layer.parameters())
        while rank > 1 and _num_weights(matrices, rank, width) > room:
            rank -= max(1, rank // 16)
        if (needed := _num_weights(matrices, rank, width)) > room:
            raise ValueError(
                f"expected memory for the decoder of {sum(map(math.prod, matrices))} parameters, max_decoder_mb of "
                f"{max_mb + -(-(needed - room) // 2**18)} or more, found {max_mb}; give more, or a smaller hidden."
            )
        self.matrices = [(rows, columns, columns > rank) for rows, columns in matrices]
        self.sizes = [rows * rank if is_low else rows * columns for rows, columns, is_low in self.matrices]
        self.layers = nn.Sequential(*layers, nn.Linear(width, sum(self.sizes)))
        self.bases = nn.ParameterList(
            nn.Parameter(torch.randn(rank, columns) / rank**0.5) for _, columns, is_low in self.matrices if is_low
        )
        self.register_buffer("reference", torch.zeros(sum(map(math.prod, matrices))))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised parameters `(B, D)`, float32."""
        offsets, bases = [], iter(self.bases)
        written = self.layers(self.gain * latents).split(self.sizes, 1)
        for part, (rows, _, is_low) in zip(written, self.matrices, strict=True):
            offsets.append((part.unflatten(1, (rows, -1)) @ next(bases)).flatten(1) if is_low else part)
        return self.reference + torch.cat(offsets, 1).float()


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows, and values of each, of a tensor; of a vector, all its values are one row's."""
    size = math.prod(shape)
    return (shape[0], size // shape[0]) if len(shape) > 1 and size else (1, size)


def _num_weights(matrices: Sequence[tuple[int, int]], rank: int, width: int) -> int:
    written = sum(rows * min(rank, columns) for rows, columns in matrices)
    return (width + 1) * written + sum(rank * columns for _, columns in matrices if columns > rank)
