"""Normalisation of flat parameter vectors, kept as float32 buffers inside the autoencoders."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from ..machine import accelerator_memory

# running_var can be exactly zero for a dead channel; its logarithm must stay finite.
LOG_FLOOR = 1e-12

MODES = ("per_tensor", "per_parameter")

# Values of a block that is normalised, fitted or trained on at a time; some copies of them are in memory at once.
BLOCK_VALUES = 2**21
# Of all bytes of an accelerator, those for each value of a block: 16 float32 copies take an eighth.
BYTES_PER_VALUE = 512


def block_values(device: torch.device) -> int:
    """Values that a device takes at a time: an accelerator as many as its memory is made for, in one piece if it can.

    Not by the memory that happens to be free, so that a training that goes on is rounded as it was.
    """
    return BLOCK_VALUES if device.type in ("cpu", "meta") else _accelerator_block_values(device)


@functools.cache
def _accelerator_block_values(device: torch.device) -> int:
    memory = accelerator_memory(device)
    return 8 * BLOCK_VALUES if memory is None else max(BLOCK_VALUES, memory[1] // BYTES_PER_VALUE)


class ParameterNormalizer(nn.Module):
    """Maps raw parameter vectors `(B, D)` to normalised ones and back, always in float32.

    The layout's `log` transform is applied first, then a z-score. `per_tensor` uses one mean and one standard
    deviation per tensor, pooled over its elements and the checkpoints (Source: Wang et al. 2024, arXiv 2402.13144,
    which averages each checkpoint's); `per_parameter` uses those of every coordinate over the checkpoints. Where the
    standard deviation is zero the value is constant: it is normalised to 0 and comes back as the mean, exactly.

    Args:
        num_parameters (`int`): Length D of a vector.
        mode (`str`, *optional*, defaults to `"per_parameter"`): `"per_tensor"` or `"per_parameter"`.
        layout (`dict`, *optional*): `ParameterLayout.to_dict()`; without it the whole vector counts as one tensor
            without transform.
    """

    def __init__(self, num_parameters: int, mode: str = "per_parameter", layout: dict | None = None):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"normalization must be one of {MODES}, got {mode!r}.")
        self.mode = mode
        spans = [(0, num_parameters, "identity")]
        if layout is not None:
            spans = [
                (t["offset"], t["offset"] + torch.Size(t["shape"]).numel(), t["transform"]) for t in layout["tensors"]
            ]
        self.spans = [(start, end) for start, end, _ in spans]
        self.log_spans = [(start, end) for start, end, transform in spans if transform == "log"]
        size = len(spans) if mode == "per_tensor" else num_parameters
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        # Where tensors begin and end, by device: made on the host at every call, an accelerator would wait for them. A
        # buffer that is not saved would be without values in a model that diffusers loads.
        self._bounds: dict[torch.device, torch.Tensor] = {}

    def _apply(self, fn: Callable, recurse: bool = True) -> ParameterNormalizer:
        # In half precision, statistics would cost more than all that is computed with them.
        kept = {"mean": self.mean, "std": self.std}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            if (found := getattr(self, name)).dtype != value.dtype:
                setattr(self, name, value.to(found.device))
        return self

    @torch.no_grad()
    def fit(self, vectors: torch.Tensor) -> None:
        """Set mean and standard deviation from raw vectors `(K, D)`, K >= 2, in float64, a bounded block at a time."""
        if len(vectors) < 2:
            raise ValueError(f"the normaliser needs at least 2 checkpoints, got {len(vectors)}.")
        columns = max(1, BLOCK_VALUES // len(vectors))
        for index, (start, end) in enumerate(self.spans):
            pooled = []
            for first in range(start, end, columns):
                block = vectors[:, first : min(first + columns, end)].to(self.mean.device)
                block = self.transform(block, first).double()
                low, high = block.amin(0), block.amax(0)
                mean, std = block.mean(0), block.std(0)
                # Rounding gives a constant column a tiny deviation; only its range tells that it is constant.
                std[low == high] = 0
                if self.mode == "per_parameter":
                    self.mean[first : first + len(mean)] = mean
                    self.std[first : first + len(std)] = std
                pooled.append(torch.stack([block.sum(), block.square().sum(), -low.min(), high.max()]).cpu())
            # A tensor without values has nothing to be normalised by.
            if self.mode == "per_tensor" and pooled:
                total, squares = torch.stack(pooled)[:, :2].sum(0) / ((end - start) * len(vectors))
                low, high = torch.stack(pooled)[:, 2:].amax(0)
                self.mean[index] = total
                self.std[index] = 0.0 if -low == high else (squares - total**2).clamp_min(0).sqrt()

    def _log_slices(self, start: int, width: int) -> list[slice]:
        slices = [slice(max(0, s - start), min(e - start, width)) for s, e in self.log_spans]
        return [span for span in slices if span.start < span.stop]

    def _statistics(self, start: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self.mean.float(), self.std.float()
        if self.mode == "per_parameter":
            return mean[start : start + width], std[start : start + width]
        if mean.device not in self._bounds:
            self._bounds[mean.device] = torch.tensor(self.spans, device=mean.device).T
        starts, ends = self._bounds[mean.device]
        sizes = (ends.clamp_max(start + width) - starts.clamp_min(start)).clamp_min(0)
        # With their sum given, nobody has to ask the device for it.
        return tuple(values.repeat_interleave(sizes, output_size=width) for values in (mean, std))

    def transform(self, vectors: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Apply the layout's `log` to columns `start … start + n` of raw vectors, `(B, n)`, in float32."""
        vectors = vectors.float()
        slices = self._log_slices(start, vectors.shape[1])
        if slices:
            vectors = vectors.clone()
        for span in slices:
            vectors[:, span] = vectors[:, span].clamp_min(LOG_FLOOR).log()
        return vectors

    def normalize(self, vectors: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Raw `(B, n)` → normalised `(B, n)`, float32; the n columns are coordinates `start … start + n` of the D."""
        mean, std = self._statistics(start, vectors.shape[1])
        scale = torch.where(std > torch.finfo(std.dtype).tiny, 1 / std, 0.0)
        return (self.transform(vectors, start) - mean) * scale

    def denormalize(self, vectors: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Normalised `(B, n)` → raw `(B, n)`, float32; the n columns are coordinates `start … start + n` of the D."""
        mean, std = self._statistics(start, vectors.shape[1])
        vectors = torch.addcmul(mean, vectors.float(), std)
        for span in self._log_slices(start, vectors.shape[1]):
            vectors[:, span] = vectors[:, span].exp()
        return vectors
