"""The files of a parameter dataset: Parquet shards, and the Arrow stream that a recorder writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from ..files import atomic_write
from ..layout import ParameterLayout

RECORDING = "recording.arrow"

# A shard stays small enough to be read, pushed and retried as one piece.
SHARD_BYTES = 2**28

# Columns beside `parameters` that say where a row comes from; all others are float32 metrics.
KEYS = {"run": "string", "seed": "int64", "step": "int64", "epoch": "float32"}


def features(layout: ParameterLayout, metrics: Iterable[str]) -> Features:
    """Column types of a parameter dataset."""
    return Features(
        {
            "parameters": List(Value("float32"), length=layout.num_parameters),
            **{name: Value(dtype) for name, dtype in KEYS.items()},
            **{name: Value("float32") for name in metrics},
        }
    )


def metric_names(columns: Iterable[str]) -> list[str]:
    """The metrics among a dataset's columns."""
    return [name for name in columns if name not in KEYS and name != "parameters"]


def check_finite(vectors: np.ndarray, layout: ParameterLayout, unit: str = "row", first: int = 0) -> None:
    """Raise `ValueError` naming the row and the tensor of the first NaN or infinity in vectors `(K, D)`."""
    for row, vector in enumerate(vectors, first):
        finite = np.isfinite(vector)
        if not finite.all():
            raise ValueError(
                f"checkpoint of {unit} {row}: tensor {layout.locate(int(finite.argmin()))!r} has a NaN or infinite "
                "value, expected finite parameters; remove the checkpoint, or train with a lower learning rate."
            )


def rows_table(
    vectors: np.ndarray,
    layout: ParameterLayout,
    columns: Mapping[str, Sequence[Any]],
    unit: str = "row",
    first: int = 0,
) -> pa.Table:
    """Make a table from vectors `(K, D)` and columns of K values; `run`, `seed` and `step` have defaults.

    Raises:
        ValueError: a shape does not fit, or a value is NaN or infinite; its text counts in `unit` from `first`.
    """
    if vectors.ndim != 2 or vectors.shape[1] != layout.num_parameters:
        raise ValueError(f"expected vectors of shape (K, {layout.num_parameters}), found {vectors.shape}.")
    check_finite(vectors, layout, unit, first)
    schema = features(layout, metric_names(columns)).arrow_schema
    defaults = {"run": ["run-0"] * len(vectors), "seed": [0] * len(vectors), "step": range(len(vectors))}
    values = {**defaults, "epoch": [None] * len(vectors), **columns}
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    arrays = [pa.FixedSizeListArray.from_arrays(flat, layout.num_parameters).cast(schema.field(0).type)]
    for name in schema.names[1:]:
        if len(values[name]) != len(vectors):
            raise ValueError(f"column {name!r}: expected {len(vectors)} values, found {len(values[name])}.")
        if name not in KEYS:
            check_metric(name, values[name], unit, first)
        arrays.append(pa.array(list(values[name]), type=schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def check_metric(name: str, values: Sequence[float | None], unit: str = "row", first: int = 0) -> None:
    """Raise `ValueError` naming the row of the first NaN or infinity in a metric."""
    for row, value in enumerate(values, first):
        if value is not None and not np.isfinite(value):
            raise ValueError(f"checkpoint of {unit} {row}: metric {name!r} is {value}, expected a finite number.")


def shards(path: str | Path) -> list[Path]:
    """The Parquet shards of a dataset folder in order."""
    return sorted((Path(path) / "data").glob("train-*.parquet"))


def check_shard(file: Path, layout: ParameterLayout) -> pa.Schema:
    """Schema of a shard.

    Raises:
        ValueError: the file is no complete Parquet file of this layout; only its footer is read.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a complete Parquet file: {str(error).splitlines()[0]}") from error
    if missing := [name for name in ("parameters", *KEYS) if name not in schema.names]:
        raise ValueError(f"{file}: expected a column {missing[0]!r}, found {schema.names}.")
    found = schema.field("parameters").type
    fixed = pa.types.is_fixed_size_list(found) and pa.types.is_float32(found.value_type)
    if not fixed or found.list_size != layout.num_parameters:
        raise ValueError(f"{file}: expected 'parameters' of {layout.num_parameters} float32 values, found {found}.")
    return schema


def read_shard(file: Path, layout: ParameterLayout) -> pa.Table:
    """Read a shard with the columns of [`features`].

    Raises:
        ValueError: the file is damaged or has other columns.
    """
    schema = features(layout, metric_names(check_shard(file, layout).names)).arrow_schema
    try:
        table = pq.read_table(file).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if table.column("parameters").null_count:
        raise ValueError(f"{file}: expected parameters in every row, found rows without.")
    return table


def write_shard(table: pa.Table, file: Path) -> None:
    """Write a shard without dictionary encoding, which costs size and time on float parameters."""
    encoding = {"parameters.list.element": "BYTE_STREAM_SPLIT"}
    with atomic_write(file) as temporary:
        pq.write_table(table, temporary, use_dictionary=False, column_encoding=encoding, compression="zstd")


def append_shards(batches: Iterable[pa.RecordBatch], path: str | Path) -> None:
    """Write batches to new shards behind those of the folder, one shard in memory at a time."""
    number = max((int(re.findall(r"\d+", file.name)[0]) for file in shards(path)), default=-1)
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        # The shard before is written only now, so that the last one is not empty.
        if size >= SHARD_BYTES:
            number += 1
            write_shard(pa.Table.from_batches(pending), Path(path) / "data" / f"train-{number:05d}.parquet")
            pending, size = [], 0
        pending.append(batch)
        size += batch.nbytes
    if pending:
        write_shard(pa.Table.from_batches(pending), Path(path) / "data" / f"train-{number + 1:05d}.parquet")


def recorded_runs(path: str | Path) -> Counter[str]:
    """Number of rows of every run in the shards of a folder."""
    counts: Counter[str] = Counter()
    for file in shards(path):
        counts.update(pq.read_table(file, columns=["run"]).column("run").to_pylist())
    return counts


def recorded_batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    """The complete rows of a folder's recording that no shard holds yet, one batch each; a cut-off row ends them."""
    in_shards = recorded_runs(path)
    with pa.OSFile(str(Path(path) / RECORDING)) as source:
        try:
            for batch in pa.ipc.open_stream(source):
                run = batch.column("run")[0].as_py()
                in_shards[run] -= 1
                if in_shards[run] < 0:
                    yield batch
        except (pa.ArrowInvalid, OSError):
            return
