"""Convolutions whose windows do not overlap, as matrix products; over one position all of them are such."""

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
