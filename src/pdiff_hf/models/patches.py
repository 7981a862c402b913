"""Layers for long vectors: patches as matrix products, and positions that are pooled and spread."""

from __future__ import annotations

import torch
from torch import nn


class PatchConv1d(nn.Conv1d):
    """An `nn.Conv1d` whose stride is its kernel size, as one matrix product: `(B, C, N·S)` → `(B, O, N)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply every patch by the kernel."""
        (size,) = self.kernel_size
        patches = input.unflatten(2, (-1, size)).transpose(1, 2).flatten(2)
        return nn.functional.linear(patches, self.weight.flatten(1), self.bias).mT


class PatchConvTranspose1d(nn.ConvTranspose1d):
    """An `nn.ConvTranspose1d` whose stride is its kernel size, as one product: `(B, C, N)` → `(B, O, N·S)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply every position by the kernel."""
        patches = (input.mT @ self.weight.flatten(1)).unflatten(2, (self.out_channels, -1))
        return patches.transpose(1, 2).flatten(2) + self.bias[:, None]


class PositionPool(nn.Module):
    """Weighted sums over groups of neighbouring positions, every position with weights of its own.

    `(B, C, N)` → `(B, C, M)` with 2·C·N values of weights and multiplications, where a dense layer would have C·N·C·M.

    Args:
        channels (`int`): C.
        positions (`int`): N.
        pooled (`int`): M, less than N.
    """

    def __init__(self, channels: int, positions: int, pooled: int):
        super().__init__()
        self.group = -(-positions // pooled)
        self.padding = pooled * self.group - positions
        self.weight = nn.Parameter(torch.randn(channels, positions) * self.group**-0.5)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Pool `(B, C, N)`."""
        weighted = input * self.weight
        if self.padding:
            weighted = nn.functional.pad(weighted, (0, self.padding))
        return weighted.unflatten(2, (-1, self.group)).sum(3)


class PositionSpread(nn.Module):
    """The way back: every position gets its group's values, scaled and shifted by weights of its own.

    Args:
        channels (`int`): C.
        positions (`int`): N.
        pooled (`int`): M, less than N.
    """

    def __init__(self, channels: int, positions: int, pooled: int):
        super().__init__()
        self.group = -(-positions // pooled)
        self.weight = nn.Parameter(torch.randn(channels, positions))
        self.bias = nn.Parameter(torch.zeros(channels, positions))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Spread `(B, C, M)` to `(B, C, N)`."""
        spread = input.repeat_interleave(self.group, 2)[..., : self.weight.shape[1]]
        return torch.addcmul(self.bias, spread, self.weight)
