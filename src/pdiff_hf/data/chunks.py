"""Chunk rows: how Parquet holds vectors that are too long for one row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, List, Value

from ..layout import ParameterLayout

# Longer vectors are stored as rows of that many values, the last one shorter. Part of the format.
CHUNK_VALUES = 10**7

COLUMNS = {"chunk": Value("int32"), "values": List(Value("float32"))}


def chunk_lengths(num_parameters: int) -> list[int]:
    """Number of values in every chunk of a vector; one when the vector is stored as it is."""
    return [min(CHUNK_VALUES, num_parameters - start) for start in range(0, num_parameters, CHUNK_VALUES)] or [0]


def is_chunked(num_parameters: int) -> bool:
    """Whether vectors of that length are stored as chunk rows."""
    return num_parameters > CHUNK_VALUES


def chunk_features(rows: Features) -> Features:
    """Columns of chunk rows for columns of rows; the values come last, they are long."""
    return Features({**{name: value for name, value in rows.items() if name != "parameters"}, **COLUMNS})


def split_rows(table: pa.Table) -> pa.Table:
    """Make chunk rows of rows: `chunk` and `values` behind the other columns, not `parameters`."""
    vectors = table.column("parameters")
    lengths = chunk_lengths(vectors.type.list_size)
    others = table.drop_columns(["parameters"]).take(np.repeat(np.arange(len(table)), len(lengths)))
    parts = []
    for block in vectors.chunks:
        offsets = np.concatenate([[0], np.cumsum(np.tile(lengths, len(block)))])
        parts.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), block.flatten()))
    index = pa.array(np.tile(np.arange(len(lengths)), len(table)), pa.int32())
    columns = {name: others.column(name) for name in others.column_names}
    schema = chunk_features(Features.from_arrow_schema(table.schema)).arrow_schema
    schema = schema.with_metadata({**(table.schema.metadata or {}), **schema.metadata})
    return pa.table({**columns, "chunk": index, "values": pa.chunked_array(parts, schema.field("values").type)}).cast(
        schema
    )


def join_chunks(table: pa.Table, schema: pa.Schema, layout: ParameterLayout) -> pa.Table:
    """Make rows of the columns `schema` from the chunk rows of whole checkpoints.

    Raises:
        ValueError: a chunk is missing, out of order, of another length or of another checkpoint than its neighbours.
    """
    lengths = chunk_lengths(layout.num_parameters)
    rows, rest = divmod(len(table), len(lengths))
    others = table.drop_columns([*COLUMNS])
    firsts = others.take(np.arange(rows) * len(lengths))
    keys = ["run", "seed", "step"]
    if (
        rest
        or table.column("chunk").to_pylist() != [*range(len(lengths))] * rows
        or pc.list_value_length(table.column("values")).to_pylist() != lengths * rows
        or not firsts.select(keys).take(np.repeat(np.arange(rows), len(lengths))).equals(others.select(keys))
    ):
        raise ValueError(
            f"expected chunks 0 to {len(lengths) - 1} of {layout.num_parameters} values in all for every checkpoint, "
            "found others."
        )
    vectors = np.empty(rows * layout.num_parameters, dtype=np.float32)
    start = 0
    for block in table.column("values").chunks:
        values = block.flatten().to_numpy(zero_copy_only=False)
        vectors[start : start + len(values)] = values
        start += len(values)
    parameters = pa.FixedSizeListArray.from_arrays(pa.array(vectors), layout.num_parameters)
    return firsts.append_column("parameters", parameters).select(schema.names).cast(schema)
