"""The conditions of a parameter dataset: as columns of its rows, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..conditions import CONDITION_FILE, MAX_VALUE, ConditionSpec
from ..files import errors_of
from ..layout import ParameterLayout
from .columns import CONDITION, CONDITION_TEXT
from .shards import read_columns

Embed = Callable[[list[str]], Any]
"""A sentence encoder: `n` sentences → numbers `(n, size)`, such as `SentenceTransformer(…).encode`."""


def check_rows(spec: ConditionSpec, values: np.ndarray, unit: str = "row", first: int = 0) -> None:
    """Raise `ValueError` naming the first row of `(K, size)` that is no condition of this kind."""
    fits = (np.abs(values) <= MAX_VALUE).all(1)
    for part, place in spec.placed:
        if part.is_choice:
            own = values[:, place]
            ones = (own == 1).sum(1)
            fits &= ((own == 0) | (own == 1)).all(1) & (ones > 0 if part.kind == "classes" else ones == 1)
    if not fits.all():
        row = int(fits.argmin())
        with errors_of(f"checkpoint of {unit} {first + row}"):
            spec.check(values[row].tolist())


def condition_columns(
    spec: ConditionSpec | None,
    columns: Mapping[str, Sequence[Any]],
    embed: Embed | None = None,
    unit: str = "row",
    first: int = 0,
) -> dict[str, Sequence[Any]]:
    """Columns with the conditions as they are stored, `(K, size)` float32.

    Args:
        spec ([`ConditionSpec`], *optional*): What they are; `None` for rows without.
        columns (`Mapping[str, Sequence]`): `condition` as [`ConditionSpec.values`] takes it, or a tensor or array
            `(K, size)` of floats; of texts the sentences themselves where there is an encoder, or their embeddings
            with the sentences in `condition_text`.
        embed (`Callable`, *optional*): The sentence encoder.
        unit, first: As in [`rows_table`], for messages.

    Raises:
        ValueError: a row has none, or one that is not of this kind, or what they are is not said.
    """
    found = dict(columns)
    if spec is None:
        if named := [name for name in (CONDITION, CONDITION_TEXT) if name in found]:
            raise ValueError(
                f"column {named[0]!r}: expected it with what conditions are (conditions=ConditionSpec…), or in a "
                "dataset that has some; found it alone."
            )
        return found
    given = found.get(CONDITION)
    missing = 0 if given is None else next((row for row, value in enumerate(given) if value is None), None)
    if missing is not None:
        raise ValueError(f"checkpoint of {unit} {first + missing}: expected a condition, {spec.summary}, found none.")
    if spec.kind == "text":
        if all(isinstance(value, str) for value in given):
            if embed is None:
                raise ValueError(
                    "expected the encoder of the sentences (embed=…), or their embeddings with the sentences in "
                    f"{CONDITION_TEXT!r}; found sentences alone."
                )
            found[CONDITION_TEXT] = list(given)
            given = np.asarray(_on_host(embed(list(given))), dtype=np.float32)
        if not all(isinstance(text, str) and text.strip() for text in found.get(CONDITION_TEXT) or [None]):
            raise ValueError(f"expected the sentence of every condition in {CONDITION_TEXT!r}, found none.")
    elif CONDITION_TEXT in found:
        raise ValueError(f"expected sentences for conditions of kind text alone, found some for {spec.summary}.")
    given = _on_host(given)
    if isinstance(given, np.ndarray) and given.ndim == 2 and given.dtype.kind == "f":
        if given.shape[1] != spec.size:
            raise ValueError(f"expected conditions of {spec.size} numbers, {spec.summary}, found {given.shape[1]}.")
        values = given.astype(np.float64)
        check_rows(spec, values, unit, first)
    else:
        values = np.empty((len(given), spec.size))
        for row, condition in enumerate(given):
            with errors_of(f"checkpoint of {unit} {first + row}"):
                values[row] = spec.values(condition)
    return {**found, CONDITION: values.astype(np.float32)}


def _on_host(values: Any) -> Any:
    is_float = isinstance(values, torch.Tensor) and values.is_floating_point()
    return values.detach().cpu().float().numpy() if is_float else values


def check_same_conditions(
    where: str | Path,
    known: ConditionSpec | None,
    new: ConditionSpec | None,
    advice: str = "choose another folder",
) -> None:
    """Raise `ValueError` when rows with conditions `new` may not stand beside those of a dataset."""
    if known == new:
        return
    expected, found = ("none" if spec is None else spec.summary for spec in (known, new))
    if expected == found:
        expected, found = (
            "the names " + ", ".join(name for part, _ in spec.placed for name in part.names) for spec in (known, new)
        )
    raise ValueError(f"{where}: expected conditions as it has them, {expected}; found {found}; {advice}.")


def read_conditions(folder: Path, stats: Mapping[str, Any]) -> ConditionSpec | None:
    """`condition.json` of a dataset's folder; `ValueError` where its `stats.json` says that it was another one."""
    spec = ConditionSpec.read(folder)
    known = stats.get("conditions", {}).get("spec")
    if known is not None and (spec is None or spec.to_dict() != known):
        expected, found = ConditionSpec.from_dict(known).summary, "none" if spec is None else spec.summary
        raise ValueError(
            f"{folder / CONDITION_FILE}: expected what stats.json says of the rows, {expected}, found {found}; "
            "restore it."
        )
    return spec


def stored_conditions(table: pa.Table, spec: ConditionSpec | None, where: str | Path) -> torch.Tensor:
    """The conditions `(K, size)` float32 of rows; `ValueError` where they are not those of `spec`."""
    stored = CONDITION in table.column_names
    if spec is None or not stored:
        what = f"a column {CONDITION!r}" if spec is not None else "conditions" if not stored else "condition.json"
        raise ValueError(f"{where}: expected {what}, found none.")
    column = table.column(CONDITION)
    if (size := column.type.list_size) != spec.size:
        raise ValueError(f"{where}: expected conditions of {spec.size} numbers, as condition.json says, found {size}.")
    if column.null_count:
        raise ValueError(f"{where}: expected {CONDITION!r} in every row, found rows without.")
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = np.concatenate(parts).reshape(len(table), size)
    with errors_of(where):
        check_rows(spec, values)
    return torch.from_numpy(values)


def condition_table(files: Sequence[Path | str], layout: ParameterLayout, spec: ConditionSpec) -> pa.Table:
    """The columns of the conditions of shards, local or at `hf://`."""
    return read_columns(files, layout, [CONDITION, CONDITION_TEXT] if spec.kind == "text" else [CONDITION])


def describe_conditions(table: pa.Table, spec: ConditionSpec, where: str | Path) -> dict[str, Any]:
    """What `stats.json` says of the conditions of rows: their kind, how many different ones, rows of each."""
    values = stored_conditions(table, spec, where).numpy()
    counts = Counter(row.tobytes() for row in values).values()
    is_text = spec.kind == "text"
    return {
        "spec": spec.to_dict(),
        "num_conditions": len(counts),
        "rows_per_condition": {"min": min(counts), "max": max(counts)},
        "example": table.column(CONDITION_TEXT)[0].as_py() if is_text else spec.describe(values[0].tolist()),
    }
