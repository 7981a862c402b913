"""What a call of the pipeline is given, checked before anything is drawn."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import numpy as np
import torch


def check_counts(**counts: int) -> None:
    """Raise `ValueError` for a number that is not whole, or below 1; of numpy's or torch's types it may be."""
    for name, value in counts.items():
        try:
            whole = not isinstance(value, bool) and operator.index(value)
        except TypeError:
            whole = False
        if whole is False:
            raise ValueError(f"{name} must be a whole number, got {value!r}.")
        if whole < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def check_fraction(name: str, value: float) -> None:
    """Raise `ValueError` for what is no number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 (the mean) and 1 (as sampled), got {value}.")


def check_generator(generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int) -> None:
    """Raise `ValueError` for what is neither one generator nor one for each network."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, (list, tuple)) or not all(isinstance(each, torch.Generator) for each in generator):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {generator!r}.")
    if len(generator) != batch_size:
        raise ValueError(
            f"got {len(generator)} generators for a batch of {batch_size}; give one each, or one for all."
        )


def check_latents(latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` for noise that is not a finite floating-point tensor of `shape`."""
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        found = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a floating-point tensor of shape {shape}, got {found}.")
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}.")
    if latents.is_meta or not latents.isfinite().all():
        raise ValueError("latents must be finite, got NaN or infinity.")


def replaced_latents(returned: Mapping[str, torch.Tensor] | None, latents: torch.Tensor) -> torch.Tensor:
    """The latents that a callback has returned, or those that it was given.

    Raises:
        ValueError: it has returned something else.
    """
    if returned is None:
        return latents
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end must return a dict or None, got {type(returned).__name__}.")
    found = returned.get("latents", latents)
    if not isinstance(found, torch.Tensor) or found.shape != latents.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"callback_on_step_end must return latents of shape {tuple(latents.shape)}, got {shape}.")
    if not found.is_floating_point():
        raise ValueError(f"callback_on_step_end must return floating-point latents, got {found.dtype}.")
    return found.to(latents)
