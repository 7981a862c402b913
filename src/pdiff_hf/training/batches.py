"""Batches and noise that depend only on the seed and the step, not on the number of processes or on a resume."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

# Noise is drawn in blocks of whole rows with about so many values; a process draws the blocks that hold its rows.
BLOCK = 2**15
# Up to so many bytes, a tensor is copied to an accelerator together with others.
PACKED_BYTES = 2**20
# Up to so many values of the global batch are drawn on the CPU, in 0.3 ms, and are the same on every device.
MAX_HOST_VALUES = 2**17


class GlobalBatch:
    """One process's share of the global batch of one optimiser step, or of one of its accumulation steps.

    Rows are dealt from an endless sequence of permutations of the dataset, so that within an epoch no row is seen
    twice; random numbers belong to rows of the global batch. A run on n processes with batch B/n, or with B/n and n
    accumulation steps, therefore sees what one process with batch B sees, and a resumed run sees what an
    uninterrupted one would have.

    Args:
        num_rows (`int`): Rows of the dataset.
        batch_size (`int`): Rows of this process in one accumulation step.
        step (`int`): Number of the optimiser step.
        seed (`int`): Seed of the run.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1): This process.
        device (`torch.device`, *optional*): Where much is drawn. What is little is drawn on the CPU, the same for
            every device, and goes there by [`upload`].
        micro_step (`int`, *optional*, defaults to 0), micro_steps (`int`, *optional*, defaults to 1): This
            accumulation step.
        start (`int`, *optional*): Rows dealt before this step; by default all steps were as large as this one.
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
        micro_step: int = 0,
        micro_steps: int = 1,
        start: int | None = None,
    ):
        self.global_size = batch_size * world_size * micro_steps
        first = (micro_step * world_size + rank) * batch_size
        self.own = slice(first, first + batch_size)
        self.device, self.step = torch.device(device), step
        self._seeds = [seed, step]
        self._draws = 0
        positions = np.arange(first, first + batch_size) + (step * self.global_size if start is None else start)
        epochs, offsets = np.divmod(positions, num_rows)
        indices = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            indices[of_epoch] = _permutation(num_rows, seed, int(epoch))[offsets[of_epoch]]
        self.indices = torch.from_numpy(indices)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values `(B, *shape)` of this process."""
        return self._draw(torch.Tensor.normal_, shape, torch.float32)

    def integers(self, high: int) -> torch.Tensor:
        """Integers in `[0, high)` of shape `(B,)`."""
        return self._draw(functools.partial(_integers, high=high), (), torch.int64)

    def shared_generator(self) -> torch.Generator:
        """Source of what is the same for all rows of a step, on the CPU: of every process and accumulation step."""
        seed = np.random.SeedSequence([*self._seeds, 0, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        return torch.Generator().manual_seed(int(seed))

    def _draw(self, fill: Callable, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        rows = max(1, BLOCK // math.prod(shape))
        blocks = range(self.own.start // rows, -(-self.own.stop // rows))
        sequence = np.random.SeedSequence([*self._seeds, self._draws])
        self._draws += 1
        seeds = sequence.generate_state(blocks.stop, np.uint64) >> np.uint64(1)
        device = torch.device("cpu") if self.global_size * math.prod(shape) <= MAX_HOST_VALUES else self.device
        generator = torch.Generator(device)
        values = torch.empty(self.own.stop - self.own.start, *shape, dtype=dtype, device=device)
        for block in blocks:
            generator.manual_seed(int(seeds[block]))
            first = block * rows
            last = min(first + rows, self.global_size)
            begin, end = max(first, self.own.start), min(last, self.own.stop)
            own = values[begin - self.own.start : end - self.own.start]
            if len(own) == last - first:
                fill(own, generator=generator)
            else:
                drawn = fill(values.new_empty(last - first, *shape), generator=generator)
                own.copy_(drawn[begin - first : end - first])
        return values


def _integers(values: torch.Tensor, high: int, generator: torch.Generator) -> torch.Tensor:
    return values.random_(0, high, generator=generator)


def upload(tensors: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The same tensors on a device, without waiting for it; those that are small come in one copy."""
    if device.type == "cpu":
        return tuple(tensors)
    is_small = [tensor.device.type == "cpu" and tensor.nbytes <= PACKED_BYTES for tensor in tensors]
    # Types of any size may begin at multiples of 16.
    small = [tensor.flatten().view(torch.uint8) for tensor, packed in zip(tensors, is_small, strict=True) if packed]
    small = [nn.functional.pad(part, (0, -len(part) % 16)) for part in small]
    sent = iter(_sent(torch.cat(small), device).split([len(part) for part in small]) if small else ())
    return tuple(
        next(sent)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) if packed else _sent(tensor, device)
        for tensor, packed in zip(tensors, is_small, strict=True)
    )


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # From memory that is not pinned, the host would have to wait.
    return tensor.pin_memory().to(device, non_blocking=True) if tensor.device.type == "cpu" else tensor


@functools.lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
