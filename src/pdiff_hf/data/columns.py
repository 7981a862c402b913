"""The columns of a shard: what a parameter dataset has in its files, and what it may find in those of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.types as types
from datasets import Features, List, Value

from ..layout import ParameterLayout
from . import chunks

# Key in the metadata of a shard; two layouts may have vectors of the same length.
FINGERPRINT = b"pdiff_hf.fingerprint"

# Columns beside `parameters` that say where a row comes from.
KEYS = {"run": "string", "seed": "int64", "step": "int64", "epoch": "float32"}
# What a network was trained for, as `condition.json` says; and as a sentence.
CONDITION, CONDITION_TEXT = "condition", "condition_text"
# Columns that a dataset may have or lack, and that are no numbers; all others are float32 metrics.
TEXTS = {"population": "string", "task": "string", CONDITION_TEXT: "string"}

# What a column beside the parameters may be stored as by others.
WHOLE_NUMBERS = "whole numbers", (types.is_integer,)
NUMBERS = "numbers", (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
NAMES = "names", (types.is_string, types.is_large_string, types.is_string_view)
EXPECTED = {
    "run": NAMES,
    "population": ("names", (*NAMES[1], types.is_null)),
    "task": ("names", (*NAMES[1], types.is_null)),
    CONDITION_TEXT: ("sentences", NAMES[1]),
    "seed": WHOLE_NUMBERS,
    "step": WHOLE_NUMBERS,
    "chunk": WHOLE_NUMBERS,
}


# Types of columns beside `parameters` and the keys, by their names.
Others = Mapping[str, Value | List]


def other_type(name: str, size: int | None = None) -> Value | List:
    """How a metric, a text or a condition of `size` numbers is stored."""
    return List(Value("float32"), length=size) if name == CONDITION else Value(TEXTS.get(name, "float32"))


def other_types(schema: pa.Schema) -> dict[str, Value | List]:
    """The metrics, texts and conditions of a shard or table that [`check_schema`] accepts."""
    others = [schema.field(name) for name in other_names(schema.names)]
    return {field.name: other_type(field.name, getattr(field.type, "list_size", None)) for field in others}


def features(layout: ParameterLayout, others: Others) -> Features:
    """Column types of a parameter dataset with these metrics, texts and conditions."""
    vector = List(Value("float32"), length=layout.num_parameters)
    return Features({"parameters": vector, **{name: Value(dtype) for name, dtype in KEYS.items()}, **others})


def arrow_schema(layout: ParameterLayout, others: Others) -> pa.Schema:
    """The columns of [`features`] with the fingerprint of the layout."""
    schema = features(layout, others).arrow_schema
    return schema.with_metadata({**schema.metadata, FINGERPRINT: layout.fingerprint.encode()})


def other_names(columns: Iterable[str]) -> list[str]:
    """The metrics, texts and conditions among a dataset's columns."""
    known = {"parameters", *KEYS, *chunks.COLUMNS}
    return [name for name in columns if name not in known]


def metric_names(columns: Iterable[str]) -> list[str]:
    """The metrics among a dataset's columns."""
    return [name for name in other_names(columns) if name not in (CONDITION, *TEXTS)]


def check_schema(schema: pa.Schema, layout: ParameterLayout) -> None:
    """Raise `ValueError` when these are not the columns of a shard of a layout."""
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise ValueError(f"expected every column once, found {twice[0]!r} twice.")
    size, chunked = layout.num_parameters, chunks.is_chunked(layout.num_parameters)
    if missing := [n for n in (*(chunks.COLUMNS if chunked else ["parameters"]), *KEYS) if n not in schema.names]:
        raise ValueError(f"expected a column {missing[0]!r}, found {schema.names}.")
    if chunked:
        found = schema.field("values").type
        if not types.is_list(found) or not types.is_float32(found.value_type):
            raise ValueError(f"expected 'values' of float32 values, found {found}.")
    else:
        found = schema.field("parameters").type
        fixed = types.is_fixed_size_list(found) and types.is_float32(found.value_type)
        if not fixed or found.list_size != size:
            raise ValueError(f"expected 'parameters' of {size} float32 values, found {found}.")
    for name in (*KEYS, *other_names(schema.names)):
        field = schema.field(name).type
        if name == CONDITION:
            if not types.is_fixed_size_list(field) or not types.is_float32(field.value_type):
                raise ValueError(f"expected 'condition' of as many float32 values in every row, found {field}.")
            continue
        value = field.value_type if types.is_dictionary(field) else field
        expected, tests = EXPECTED.get(name, NUMBERS)
        if not any(test(value) for test in tests):
            raise ValueError(f"expected {expected} in the column {name!r}, found the type {field}.")
    fingerprint = (schema.metadata or {}).get(FINGERPRINT, layout.fingerprint.encode()).decode(errors="replace")
    if fingerprint != layout.fingerprint:
        raise ValueError(f"expected the layout {layout.fingerprint[:12]}, found {fingerprint[:12]}.")
