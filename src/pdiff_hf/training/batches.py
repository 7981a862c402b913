"""Batches and noise that depend only on the seed and the step, not on the number of processes or on a resume."""

from __future__ import annotations

import numpy as np
import torch


class GlobalBatch:
    """One process's share of the global batch of one step.

    Rows are dealt from an endless sequence of permutations of the dataset, so that within an epoch no row is seen
    twice; random numbers are drawn for the whole global batch and sliced. A run on n processes with batch B/n
    therefore sees what one process with batch B sees, and a resumed run sees what an uninterrupted one would have.

    Args:
        num_rows (`int`): Rows of the dataset.
        batch_size (`int`): Rows of this process.
        step (`int`): Number of the batch, counting gradient accumulation steps.
        seed (`int`): Seed of the run.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1): This process.
        device (`torch.device`, *optional*): Where the random numbers are drawn.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.global_size = batch_size * world_size
        self.own = slice(rank * batch_size, (rank + 1) * batch_size)
        self.device = device
        positions = np.arange(step * self.global_size, (step + 1) * self.global_size)[self.own]
        epochs, offsets = np.divmod(positions, num_rows)
        indices = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            permutation = np.random.default_rng([seed, int(epoch)]).permutation(num_rows)
            indices[epochs == epoch] = permutation[offsets[epochs == epoch]]
        self.indices = torch.from_numpy(indices)
        state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator(device).manual_seed(int(state >> np.uint64(1)))

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values `(B, *shape)` of this process."""
        return torch.randn(self.global_size, *shape, generator=self.generator, device=self.device)[self.own]

    def integers(self, high: int) -> torch.Tensor:
        """Integers in `[0, high)` of shape `(B,)`."""
        return torch.randint(high, (self.global_size,), generator=self.generator, device=self.device)[self.own]
