"""Metrics, steps and epochs as single numbers, whatever they are handed in as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

MAX_FLOAT32 = float(np.finfo(np.float32).max)


def to_number(value: Any, name: str) -> int | float | None:
    """A number of any kind as one of Python's: also a tensor or an array of one element; `None` stays.

    Raises:
        ValueError: `value` is not one real number; the message names it `name`.
    """
    found = value
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta:
        found = value.detach().item()
    elif isinstance(value, (np.ndarray, np.generic)) and value.size == 1 and not np.ma.is_masked(value):
        found = value.item()
    if found is None or isinstance(found, (bool, int, float)):
        return found
    if isinstance(found, Integral):
        return int(found)
    if isinstance(found, (Real, Decimal)):
        return float(found)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        what = f"a {type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    else:
        what = f"{value!r:.40} of type {type(value).__name__}"
    raise ValueError(f"{name}: expected one real number, found {what}.")


def to_metric(value: Any, name: str) -> float | None:
    """[`to_number`] that float32 holds."""
    number = to_number(value, name)
    if number is None:
        return None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, expected a finite number.")
    if abs(number) > MAX_FLOAT32:
        raise ValueError(f"{name} is {number}, expected a number that float32 holds, up to {MAX_FLOAT32:.3g}.")
    return float(number)


def to_integer(value: Any, name: str) -> int:
    """[`to_number`] that is a whole one of 64 bits."""
    number = to_number(value, name)
    if number is None or not math.isfinite(number) or number != int(number) or abs(number) >= 2**63:
        raise ValueError(f"{name}: expected a whole number, found {number!r}.")
    return int(number)


def to_text(value: Any, name: str) -> str:
    """A text as it is."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, found {value!r:.40} of type {type(value).__name__}.")
    return value


def to_optional_text(value: Any, name: str) -> str | None:
    """[`to_text`]; `None` stays."""
    return None if value is None else to_text(value, name)


# Columns that are no metrics, and what makes their values.
KINDS = {
    "run": to_text,
    "seed": to_integer,
    "step": to_integer,
    "epoch": to_metric,
    "population": to_optional_text,
    "task": to_optional_text,
    "condition_text": to_text,
}


def column_values(name: str, values: Sequence[Any], num: int, unit: str, first: int) -> Iterable[int | float | str]:
    """The values of a column of a parameter dataset; messages count its rows in `unit` from `first` on.

    Raises:
        ValueError: there are not `num` of them, or one is not of the column's kind.
    """
    if not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0 or isinstance(values, str):
        raise ValueError(f"column {name!r}: expected {num} values, found {values!r:.40}.")
    if len(values) != num:
        raise ValueError(f"column {name!r}: expected {num} values, found {len(values)}.")
    what = repr(name) if name in KINDS else f"metric {name!r}"
    convert = KINDS.get(name, to_metric)
    return [convert(value, f"checkpoint of {unit} {row}: {what}") for row, value in enumerate(values, first)]
