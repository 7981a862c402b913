"""What imported checkpoints were trained for: a file of names and conditions, and what kind they are."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...conditions import KINDS_OF_PARTS, ConditionSpec
from ...files import check_regular, errors_of, read_object
from ...text_encoder import TextEncoder
from ...wording import argument
from ..conditions import Embed
from .checkpoint import Checkpoint, natural_key, without_suffixes

# Columns of a CSV file that tell the kind; all others are metrics.
TOLD = ("classes", "label", "text")
SEPARATOR = ";"
# Of classes that are numbers alone.
MAX_INDEX = 2**16


def take_conditions(
    checkpoints: Sequence[Checkpoint],
    conditions: str | Path | Mapping[str, Any],
    spec: ConditionSpec | None = None,
    embed: Embed | None = None,
) -> tuple[list[Checkpoint], ConditionSpec, str]:
    """Checkpoints with what they were trained for.

    Args:
        checkpoints (`Sequence[Checkpoint]`): All that are imported.
        conditions (`str`, `Path` or `Mapping`): By names, or the file, see [`read_conditions_file`].
        spec ([`ConditionSpec`], *optional*): What they are; by default as the file says, or as they look.
        embed (`Callable`, *optional*): The encoder of sentences.

    Returns:
        `tuple`: the checkpoints, what their conditions are, and how that is known.

    Raises:
        ValueError: the file is none of conditions, a checkpoint has none, several or one of another kind, or a
            condition is of no checkpoint.
    """
    told: dict[str, Any] = {}
    source, how = argument("conditions"), "as they were given"
    if not isinstance(conditions, Mapping):
        source, (conditions, told) = conditions, read_conditions_file(conditions)
    with errors_of(source):
        found = with_conditions(checkpoints, conditions)
        if spec is None:
            how = "as the file says" if "kind" in told else "as they look"
            spec = find_spec([checkpoint.condition for checkpoint in found], **told, embed=embed)
        for checkpoint in found:
            # Sentences become numbers when they are recorded.
            if not isinstance(checkpoint.condition, str) or spec.kind != "text":
                with errors_of(checkpoint.where):
                    spec.values(checkpoint.condition)
    return found, spec, how


def read_conditions_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Conditions by the names of checkpoints, and what the file tells of them: `kind` and `names`, if it does.

    A CSV file has names in its first column, and a column `classes` (`cat;dog`), `label` or `text`, or one of numbers
    for each metric. A JSON file is an object of names and conditions, or of `conditions`, `kind` and `names`; of
    conditions of several parts `names` are by their kinds.

    Raises:
        ValueError: the file is not there, or is none of this.
    """
    file = check_regular(path, "a file of conditions")
    if file.suffix.lower() == ".csv":
        with errors_of(file, OSError, UnicodeDecodeError, csv.Error):
            return _read_csv(file)
    values = read_object(file)
    if not isinstance(values.get("conditions"), dict):
        return values, {}
    if unknown := values.keys() - {"conditions", "kind", "names"}:
        raise ValueError(f"{file}: expected 'conditions', 'kind' and 'names', found {min(unknown)!r}.")
    return values["conditions"], {key: values[key] for key in ("kind", "names") if key in values}


def _read_csv(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with open(file, newline="", encoding="utf-8-sig") as opened:
        header, *rows = [row for row in csv.reader(opened) if row] or [[]]
    columns = header[1:]
    told = [name for name in columns if name in TOLD]
    if not columns or (told and len(columns) > 1):
        raise ValueError(
            f"expected a column of names and one of {', '.join(TOLD)}, or some of numbers; found {header}."
        )
    found: dict[str, Any] = {}
    for name, *cells in rows:
        if len(cells) != len(columns) or not all(cell.strip() for cell in cells):
            raise ValueError(f"expected {columns} of {name!r}, found {cells}.")
        if name in found:
            raise ValueError(f"expected every name once, found {name!r} twice.")
        if not told:
            with errors_of(f"{name!r}: expected a number, or a column that is called {', '.join(TOLD)}"):
                found[name] = {column: float(cell) for column, cell in zip(columns, cells, strict=True)}
        else:
            parts = [part.strip() for part in cells[0].split(SEPARATOR)]
            found[name] = parts if told == ["classes"] else cells[0].strip()
    return found, {"kind": told[0]} if told else {"kind": "metric", "names": columns}


def find_spec(
    values: Sequence[Any],
    kind: str | None = None,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    embed: Embed | None = None,
) -> ConditionSpec:
    """What conditions are, as far as it is told, and else as they look.

    Objects by kinds are conditions of several parts, others metrics; lists of names or whole numbers classes, lists of
    other numbers vectors; texts are sentences where there is an encoder, and else labels. Names are those that occur.

    Raises:
        ValueError: they are not of one kind, or there is no encoder for sentences.
    """
    if kind is None:
        kinds = {_look(value, embed) for value in values}
        if len(kinds) != 1 or None in kinds:
            raise ValueError(
                "expected conditions of one kind: lists of classes, labels, objects of metrics, or lists of numbers; "
                f"found {values[0]!r:.80} and others; say 'kind' and 'names' in a JSON file."
            )
        (kind,) = kinds
    if kind == "text":
        if embed is None:
            given = argument("embed", "TextEncoder(…)", "NAME")
            raise ValueError(f"expected the encoder of conditions that are sentences, found none; give {given}.")
        encoder = embed.name if isinstance(embed, TextEncoder) else None
        return ConditionSpec("text", np.shape(embed(list(map(str, values[:1]))))[-1], encoder=encoder)
    if kind == "composed":
        kinds = list(values[0]) if isinstance(values[0], Mapping) else []
        if any(not isinstance(value, Mapping) or {*value} != {*kinds} for value in values):
            raise ValueError(f"expected an object of {' and '.join(map(str, kinds))} for each, found others.")
        if not isinstance(names := names or {}, Mapping):
            raise ValueError(f"expected the names of parts by their kinds, found {names!r:.200}.")
        own = {part: [value[part] for value in values] for part in kinds}
        return ConditionSpec.composed(*(find_spec(own[part], part, names.get(part)) for part in kinds))
    if kind == "vector":
        return ConditionSpec("vector", len(values[0]) if isinstance(values[0], list) else 1)
    if names is None and kind == "metric":
        if not isinstance(values[0], Mapping):
            raise ValueError(f"expected numbers by the names of metrics, found {values[0]!r:.80}.")
        names = list(values[0])
    elif names is None:
        found = {
            n for value in values for n in (value if isinstance(value, list) else [value]) if type(n) in (str, int)
        }
        if found and all(type(name) is int for name in found):
            found = set(map(str, range(min(max(found), MAX_INDEX) + 1)))
        names = sorted(map(str, found), key=natural_key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a list of names, found {names!r:.200}.")
    return ConditionSpec.named(kind, names)


def _look(value: Any, embed: Embed | None) -> str | None:
    if isinstance(value, Mapping):
        is_number = all(isinstance(number, Real) for number in value.values())
        return "metric" if is_number or not {*value} <= {*KINDS_OF_PARTS} else "composed"
    if isinstance(value, str):
        return "label" if embed is None else "text"
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(type(item) is int for item in value):
            return "classes"
        return "vector" if all(isinstance(item, Real) for item in value) else None
    return None


def with_conditions(checkpoints: Sequence[Checkpoint], conditions: Mapping[str, Any]) -> list[Checkpoint]:
    """Checkpoints with their conditions.

    A name is that of a file, with or without its ending and the folders before it, of a folder or of a run.

    Raises:
        ValueError: a checkpoint has none or several, or a condition is of no checkpoint.
    """
    used: set[str] = set()
    found = []
    for checkpoint in checkpoints:
        own = sorted(_names(checkpoint) & conditions.keys())
        if len(own) != 1:
            several = f"several, of {', '.join(map(repr, own))}" if own else "none"
            raise ValueError(
                f"{checkpoint.where}: expected one condition by its name or its folder's, found {several}."
            )
        used.update(own)
        found.append(replace(checkpoint, condition=conditions[own[0]]))
    if unused := [name for name in conditions if name not in used]:
        raise ValueError(f"expected conditions of the checkpoints alone, found one of {unused[0]!r}, which is none.")
    return found


def _names(checkpoint: Checkpoint) -> set[str]:
    """By which names a file of conditions may call a checkpoint."""
    names = {checkpoint.run, checkpoint.source}
    for path in (checkpoint.where, without_suffixes(checkpoint.where)):
        parts = PurePosixPath(path).parts
        names |= {"/".join(parts[place:]) for place in range(len(parts))}
    # And the folders that it is in.
    parts = PurePosixPath(checkpoint.source).parts
    return names | {"/".join(parts[:place]) for place in range(1, len(parts))}
