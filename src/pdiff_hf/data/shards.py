"""The files of a parameter dataset: Parquet shards, and the Arrow stream that a recorder writes."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, List, Value, load_dataset
from huggingface_hub import HfFileSystem
from pyarrow.dataset import ParquetFragmentScanOptions

from ..files import atomic_write, errors_of
from ..layout import ParameterLayout
from ..os_errors import writing
from . import chunks
from .scalars import column_values

RECORDING = "recording.arrow"

# A shard stays small enough to be read, pushed and retried as one piece.
SHARD_BYTES = 2**27

# What is decoded into memory at a time, or one row if that is larger.
ROW_GROUP_BYTES = 2**25

# Key in the metadata of a recording that goes on with runs: how many rows of each the shards held when it began.
KNOWN_ROWS = b"pdiff_hf.known_rows"

# Key in the metadata of a shard; two layouts may have vectors of the same length.
FINGERPRINT = b"pdiff_hf.fingerprint"

# Columns beside `parameters` that say where a row comes from; all others are float32 metrics.
# How whoever has no recorder at hand finishes a recording.
FINISH_COMMAND = "python -c \"from pdiff_hf.data.record import finish_recording as f; f('{}')\""
KEYS = {"run": "string", "seed": "int64", "step": "int64", "epoch": "float32"}


def features(layout: ParameterLayout, metrics: Iterable[str]) -> Features:
    """Column types of a parameter dataset."""
    types = KEYS | dict.fromkeys(metrics, "float32")
    vector = List(Value("float32"), length=layout.num_parameters)
    return Features({"parameters": vector, **{name: Value(dtype) for name, dtype in types.items()}})


def arrow_schema(layout: ParameterLayout, metrics: Iterable[str]) -> pa.Schema:
    """The columns of [`features`] with the fingerprint of the layout."""
    schema = features(layout, metrics).arrow_schema
    return schema.with_metadata({**schema.metadata, FINGERPRINT: layout.fingerprint.encode()})


def metric_names(columns: Iterable[str]) -> list[str]:
    """The metrics among a dataset's columns."""
    others = {"parameters", *KEYS, *chunks.COLUMNS}
    return [name for name in columns if name not in others]


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
    vectors: np.ndarray, layout: ParameterLayout, columns: Mapping[str, Sequence], unit: str = "row", first: int = 0
) -> pa.Table:
    """Make a table from vectors `(K, D)` and columns of K values; `run`, `seed` and `step` have defaults.

    Raises:
        ValueError: a shape does not fit, or a value is NaN or infinite; its text counts in `unit` from `first`.
    """
    if vectors.ndim != 2 or vectors.shape[1] != layout.num_parameters:
        raise ValueError(f"expected vectors of shape (K, {layout.num_parameters}), found {vectors.shape}.")
    check_finite(vectors, layout, unit, first)
    schema = arrow_schema(layout, metric_names(columns))
    defaults = {"run": ["run-0"] * len(vectors), "seed": [0] * len(vectors), "step": range(len(vectors))}
    values = {**defaults, "epoch": [None] * len(vectors), **columns}
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    arrays = [pa.FixedSizeListArray.from_arrays(flat, layout.num_parameters).cast(schema.field(0).type)]
    for name in schema.names[1:]:
        column = column_values(name, values[name], len(vectors), unit, first)
        arrays.append(pa.array(column, type=schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def find_shards(path: str | Path) -> list[Path]:
    """The Parquet shards of a dataset folder in order."""
    return sorted((Path(path) / "data").glob("train-*.parquet"))


def some_shards(path: str | Path) -> list[Path]:
    """The [`find_shards`] of a folder; `ValueError` when there are none."""
    if not (found := find_shards(path)):
        raise ValueError(f"expected Parquet shards {Path(path) / 'data' / 'train-*.parquet'}, found none.")
    return found


def check_shard(file: str | Path, layout: ParameterLayout) -> pa.Schema:
    """Schema of a Parquet file, local or at `hf://`, of which only the footer is read; it has to be of this layout."""
    with errors_of(file, pa.ArrowException, OSError, said=" is not a complete Parquet file"):
        where = {"filesystem": HfFileSystem()} if str(file).startswith("hf://") else {}
        schema = pq.read_schema(str(file).removeprefix("hf://"), **where)
    size, chunked = layout.num_parameters, chunks.is_chunked(layout.num_parameters)
    if missing := [n for n in (*(chunks.COLUMNS if chunked else ["parameters"]), *KEYS) if n not in schema.names]:
        raise ValueError(f"{file}: expected a column {missing[0]!r}, found {schema.names}.")
    if chunked:
        found = schema.field("values").type
        if not pa.types.is_list(found) or not pa.types.is_float32(found.value_type):
            raise ValueError(f"{file}: expected 'values' of float32 values, found {found}.")
    else:
        found = schema.field("parameters").type
        fixed = pa.types.is_fixed_size_list(found) and pa.types.is_float32(found.value_type)
        if not fixed or found.list_size != size:
            raise ValueError(f"{file}: expected 'parameters' of {size} float32 values, found {found}.")
    fingerprint = (schema.metadata or {}).get(FINGERPRINT, layout.fingerprint.encode()).decode(errors="replace")
    if fingerprint != layout.fingerprint:
        raise ValueError(f"{file}: expected the layout {layout.fingerprint[:12]}, found {fingerprint[:12]}.")
    return schema


def shard_metrics(file: str | Path, layout: ParameterLayout) -> list[str]:
    """The metrics of a shard, see [`check_shard`]."""
    return metric_names(check_shard(file, layout).names)


def read_rows(file: Path, layout: ParameterLayout) -> Iterator[pa.Table]:
    """Read a shard bit by bit, one row per checkpoint, with the columns of [`features`], and check it."""
    schema = arrow_schema(layout, shard_metrics(file, layout))
    chunked, step = chunks.is_chunked(layout.num_parameters), len(chunks.chunk_lengths(layout.num_parameters))
    stored = [*schema.names[1:], *chunks.COLUMNS] if chunked else schema.names
    with errors_of(file, pa.ArrowException, OSError, said=" is damaged"), pq.ParquetFile(file) as parquet:
        pending = parquet.schema_arrow.empty_table().select(stored)
        for group in range(parquet.num_row_groups):
            pending = pa.concat_tables([pending, parquet.read_row_group(group, stored)])
            # A checkpoint's chunks may lie in several row groups.
            whole = len(pending) - (len(pending) % step if group < parquet.num_row_groups - 1 else 0)
            table, pending = pending.slice(0, whole), pending.slice(whole)
            if not whole:
                continue
            table = chunks.join_chunks(table, schema, layout) if chunked else table.select(schema.names)
            if table.column("parameters").null_count:
                raise ValueError("expected parameters in every row, found rows without.")
            yield table.cast(schema)


def read_shard(file: Path, layout: ParameterLayout) -> pa.Table:
    """Read a shard whole; see [`read_rows`]."""
    schema = arrow_schema(layout, shard_metrics(file, layout))
    return pa.concat_tables([*read_rows(file, layout), schema.empty_table()])


def read_columns(files: Sequence[Path], layout: ParameterLayout) -> pa.Table:
    """All columns of shards but the parameters, one row per checkpoint; see [`read_rows`]."""
    tables = []
    for file in files:
        names = shard_metrics(file, layout)
        with errors_of(file, pa.ArrowException, OSError, said=" is damaged"):
            tables.append(_read_beside(file, [*KEYS, *names]))
    return pa.concat_tables(tables, promote_options="default")


def _read_beside(file: Path, columns: list[str]) -> pa.Table:
    # Of chunk rows, the first one stands for its checkpoint.
    first = pc.field("chunk") == 0 if "chunk" in pq.read_schema(file).names else None
    return pq.read_table(file, columns=columns, filters=first)


def vector_blocks(table: pa.Table) -> Iterator[np.ndarray]:
    """The parameters of rows as arrays `(n, D)`, without copying."""
    for chunk in table.column("parameters").chunks:
        yield chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), chunk.type.list_size)


def stream_rows(files: Sequence[Path | str], layout: ParameterLayout) -> IterableDataset:
    """The rows of shards in torch format, read as they are asked for; those at `hf://` are not downloaded."""
    # Those on the Hub are checked when they are reached; their footers alone may take minutes.
    is_local = isinstance(files[0], Path)
    checked = files if is_local else files[:1]
    rows = features(layout, dict.fromkeys(name for file in checked for name in shard_metrics(file, layout)))
    chunked = chunks.is_chunked(layout.num_parameters)
    # Fetched ahead, the bytes of a shard would stay in memory while it is read.
    scan = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=2**22)
    dataset = load_dataset(
        "parquet",
        data_files=[glob.escape(str(file.absolute())) for file in files] if is_local else files,
        features=chunks.chunk_features(rows) if chunked else rows,
        fragment_scan_options=scan,
        split="train",
        streaming=True,
    )
    if chunked:
        dataset = dataset.with_format("arrow").map(
            chunks.join_chunks,
            batched=True,
            batch_size=len(chunks.chunk_lengths(layout.num_parameters)),
            fn_kwargs={"schema": rows.arrow_schema, "layout": layout},
            features=rows,
            remove_columns=[*chunks.COLUMNS],
        )
    return dataset.with_format("torch")


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows the columns of `schema`, those that they lack as nulls."""
    return pa.concat_tables([table, schema.empty_table()], promote_options="default").select(schema.names).cast(schema)


def write_shard(rows: pa.Table | pa.RecordBatchReader, file: Path) -> None:
    """Write a shard without dictionary encoding, which costs size and time on float parameters."""
    reader = rows.to_reader() if isinstance(rows, pa.Table) else rows
    chunked = chunks.is_chunked(reader.schema.field("parameters").type.list_size)
    with (
        atomic_write(file) as temporary,
        pq.ParquetWriter(
            temporary,
            chunks.split_rows(reader.schema.empty_table()).schema if chunked else reader.schema,
            use_dictionary=False,
            column_encoding={f"{'values' if chunked else 'parameters'}.list.element": "BYTE_STREAM_SPLIT"},
            compression="zstd",
        ) as writer,
    ):
        for group in _take_bytes(reader, ROW_GROUP_BYTES):
            table = pa.Table.from_batches(group)
            table = chunks.split_rows(table) if chunked else table
            writer.write_table(table, max(1, ROW_GROUP_BYTES * len(table) // max(1, table.nbytes)))


def _take_bytes(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """Divide batches into groups that end with the batch that makes them `size` bytes; a group is read lazily."""
    batches = iter(batches)

    def group(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        taken = 0
        for part in itertools.chain([batch], batches):
            taken += part.nbytes
            yield part
            if taken >= size:
                return

    for first in batches:
        yield group(first)


def append_shards(rows: pa.Table | Iterable[pa.RecordBatch], path: str | Path) -> None:
    """Write rows to new shards behind those of the folder, a row group in memory at a time.

    A checkpoint is never split over shards. They appear in the folder when the last one is complete.
    """
    if isinstance(rows, pa.Table):
        length = rows.schema.field("parameters").type.list_size
        rows = rows.to_batches(max_chunksize=max(1, SHARD_BYTES // (4 * length)))
    last = max((int(re.findall(r"\d+", file.name)[0]) for file in find_shards(path)), default=-1)
    folder, staged = Path(path) / "data", Path(path) / ".append"
    # What an append that was killed has left there is no part of the dataset.
    shutil.rmtree(staged, ignore_errors=True)
    with writing(folder, staged), contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, staged, ignore_errors=True)
        for number, group in enumerate(_take_bytes(rows, SHARD_BYTES), last + 1):
            first = next(group)
            reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], group))
            write_shard(reader, staged / f"train-{number:05d}.parquet")
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(staged.glob("*.parquet")):
            os.replace(file, folder / file.name)


def recorded_runs(path: str | Path) -> Counter[str]:
    """Number of checkpoints of every run in the shards of a folder."""
    counts: Counter[str] = Counter()
    for file in find_shards(path):
        counts.update(_read_beside(file, ["run"]).column("run").to_pylist())
    return counts


def _without_known_rows(schema: pa.Schema) -> dict[bytes, bytes]:
    return {key: value for key, value in (schema.metadata or {}).items() if key != KNOWN_ROWS}


def recorded_batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    """The complete rows of a folder's recording that no shard holds yet, one batch each; a cut-off row ends them."""
    in_shards = recorded_runs(path)
    with pa.OSFile(str(Path(path) / RECORDING)) as source:
        try:
            stream = pa.ipc.open_stream(source)
            in_shards.subtract(json.loads((stream.schema.metadata or {}).get(KNOWN_ROWS, b"{}")))
            for batch in stream:
                run = batch.column("run")[0].as_py()
                in_shards[run] -= 1
                if in_shards[run] < 0:
                    yield batch.replace_schema_metadata(_without_known_rows(stream.schema))
        except (pa.ArrowInvalid, OSError):
            return
