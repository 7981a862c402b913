"""The files of a parameter dataset: Parquet shards, and the Arrow stream that a recorder writes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..files import atomic_write, check_regular
from ..layout import ParameterLayout
from ..os_errors import writing
from . import chunks
from .columns import CONDITION, KEYS, Others, arrow_schema, check_schema, other_names, other_type, other_types
from .folder import read_layout
from .integrity import announce, check_content, check_footer, damage_as_error, find_shards
from .remote import open_remote
from .scalars import column_values

RECORDING = "recording.arrow"

# A shard stays small enough to be read, pushed and retried as one piece.
SHARD_BYTES = 2**27

# What is decoded into memory at a time, or one row if that is larger.
ROW_GROUP_BYTES = 2**25

# Key in the metadata of a recording that goes on with runs: how many rows of each the shards held when it began.
KNOWN_ROWS = b"pdiff_hf.known_rows"

# How whoever has no recorder at hand finishes a recording.
FINISH_COMMAND = "python -c \"from pdiff_hf.data.record import finish_recording as f; f('{}')\""

# No network has larger values. The squares of a million of them have a sum in float32, in which training computes.
MAX_VALUE = 1e16


def check_values(vectors: np.ndarray, layout: ParameterLayout, unit: str = "row", first: int = 0) -> None:
    """Raise `ValueError` naming row and tensor of the first value of vectors `(K, D)` that cannot be trained on.

    Values are finite, not above `MAX_VALUE`, and not above what the tensor's own type holds.
    """
    limits = [min(MAX_VALUE, torch.finfo(getattr(torch, spec.dtype)).max) for spec in layout.tensors]
    for row, vector in enumerate(vectors, first):
        # A NaN is not below anything.
        if np.maximum(vector.max(initial=0), -vector.min(initial=0)) <= min(limits, default=MAX_VALUE):
            continue
        for spec, limit in zip(layout.tensors, limits, strict=True):
            values = vector[spec.offset : spec.offset + spec.numel]
            fits = np.abs(values) <= limit
            if fits.all():
                continue
            value = values[fits.argmin()]
            found = "a NaN or infinite value"
            if np.isfinite(value):
                found = f"the value {value:.3g}, above {limit:.3g} and for training as good as NaN or infinite"
            raise ValueError(
                f"checkpoint of {unit} {row}: tensor {spec.name!r} has {found}, expected finite parameters of a "
                "network; remove the checkpoint, or train with a lower learning rate."
            )


def rows_table(
    vectors: np.ndarray, layout: ParameterLayout, columns: Mapping[str, Sequence], unit: str = "row", first: int = 0
) -> pa.Table:
    """Make a table from vectors `(K, D)` and columns of K values; `run`, `seed` and `step` have defaults.

    `condition` is an array `(K, size)`, see [`condition_columns`].

    Raises:
        ValueError: a shape does not fit, or a value is NaN, infinite or too large; it counts in `unit` from `first`.
    """
    if vectors.ndim != 2 or vectors.shape[1] != layout.num_parameters:
        raise ValueError(f"expected vectors of shape (K, {layout.num_parameters}), found {vectors.shape}.")
    check_values(vectors, layout, unit, first)
    size = np.shape(columns[CONDITION])[-1] if CONDITION in columns else None
    schema = arrow_schema(layout, {name: other_type(name, size) for name in other_names(columns)})
    defaults = {"run": ["run-0"] * len(vectors), "seed": [0] * len(vectors), "step": range(len(vectors))}
    values = {**defaults, "epoch": [None] * len(vectors), **columns}
    arrays = [_lists(vectors).cast(schema.field(0).type)]
    for name in schema.names[1:]:
        if name == CONDITION:
            if len(values[name]) != len(vectors):
                raise ValueError(f"column {name!r}: expected {len(vectors)} values, found {len(values[name])}.")
            arrays.append(_lists(values[name]).cast(schema.field(name).type))
            continue
        column = column_values(name, values[name], len(vectors), unit, first)
        arrays.append(pa.array(column, type=schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """Rows `(K, size)` as float32."""
    flat = np.ascontiguousarray(values, dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


@contextmanager
def open_shard(file: str | Path, layout: ParameterLayout) -> Iterator[tuple[pq.ParquetFile, pa.Schema]]:
    """Open a Parquet file, local or at `hf://`, of which only the footer is read, and check that it is of this layout.

    Pages are compared with their checksums. What is wrong ends in one line that names the file.
    """
    # Fetched ahead, the bytes of a shard would stay in memory while it is read.
    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 2**22}
    with ExitStack() as stack:
        with damage_as_error(file, " is not a complete Parquet file"):
            opened = open_remote(file) if isinstance(file, str) else open(check_regular(file), "rb")
            parquet = stack.enter_context(pq.ParquetFile(stack.enter_context(opened), **options))
            schema = parquet.schema_arrow
        with damage_as_error(file):
            check_schema(schema, layout)
            if isinstance(file, Path):
                check_footer(file)
            yield parquet, schema


def check_shard(file: str | Path, layout: ParameterLayout) -> int:
    """Number of checkpoints in a shard, from its footer; see [`open_shard`]."""
    with open_shard(file, layout) as (parquet, _):
        # A checkpoint that is not complete counts until it is read.
        return -(-parquet.metadata.num_rows // len(chunks.chunk_lengths(layout.num_parameters)))


def shard_others(file: str | Path, layout: ParameterLayout) -> Others:
    """The metrics, texts and conditions of a shard, see [`open_shard`]."""
    with open_shard(file, layout) as (_, schema):
        return other_types(schema)


def read_rows(file: str | Path, layout: ParameterLayout) -> Iterator[pa.Table]:
    """Read a shard bit by bit, one row per checkpoint, with the columns of [`features`], and check it."""
    chunked, step = chunks.is_chunked(layout.num_parameters), len(chunks.chunk_lengths(layout.num_parameters))
    with open_shard(file, layout) as (parquet, found):
        if isinstance(file, Path):
            check_content(file)
        schema = arrow_schema(layout, other_types(found))
        stored = [*schema.names[1:], *chunks.COLUMNS] if chunked else schema.names
        pending = found.empty_table().select(stored)
        for group in range(parquet.num_row_groups):
            pending = pa.concat_tables([pending, parquet.read_row_group(group, stored)])
            # A checkpoint's chunks may lie in several row groups.
            whole = len(pending) - (len(pending) % step if group < parquet.num_row_groups - 1 else 0)
            table, pending = pending.slice(0, whole), pending.slice(whole)
            if not whole:
                continue
            table = chunks.join_chunks(table, schema, layout) if chunked else table.select(schema.names)
            for name in ("parameters", *KEYS, CONDITION):
                if name != "epoch" and name in schema.names and table.column(name).null_count:
                    raise ValueError(f"expected {name!r} in every row, found rows without.")
            yield table.cast(schema)
            del table
            # Arrow keeps what was freed; of large rows, that is many times one of them.
            pa.default_memory_pool().release_unused()


def read_shard(file: Path, layout: ParameterLayout) -> pa.Table:
    """Read a shard whole; see [`read_rows`]."""
    schema = arrow_schema(layout, shard_others(file, layout))
    return pa.concat_tables([*read_rows(file, layout), schema.empty_table()])


def read_columns(files: Sequence[Path], layout: ParameterLayout, names: Sequence[str] | None = None) -> pa.Table:
    """Columns of shards beside the parameters, all by default, one row per checkpoint; see [`read_rows`]."""
    tables = []
    for file in files:
        with open_shard(file, layout) as (parquet, found):
            schema = arrow_schema(layout, other_types(found)).remove(0)
            # Of chunk rows, the first one stands for its checkpoint.
            chunked = chunks.is_chunked(layout.num_parameters)
            table = parquet.read([*(names or schema.names), *(["chunk"] if chunked else [])])
            table = table.filter(pc.field("chunk") == 0) if chunked else table
            tables.append(table.select(schema.names).cast(schema) if names is None else table.select(names))
    return pa.concat_tables(tables, promote_options="default")


def vector_blocks(table: pa.Table) -> Iterator[np.ndarray]:
    """The parameters of rows as arrays `(n, D)`, without copying."""
    for chunk in table.column("parameters").chunks:
        yield chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), chunk.type.list_size)


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
            write_page_checksum=True,
        ) as writer,
    ):
        for group in _take_bytes(reader, ROW_GROUP_BYTES):
            table = pa.Table.from_batches(group)
            table = chunks.split_rows(table) if chunked else table
            writer.write_table(table, max(1, ROW_GROUP_BYTES * len(table) // max(1, table.nbytes)))
            del table, group
            pa.default_memory_pool().release_unused()


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


def append_shards(rows: pa.Table | Iterable[pa.RecordBatch], path: str | Path, first: int | None = None) -> None:
    """Write rows to new shards behind those of the folder, or from number `first`, a row group in memory at a time.

    A checkpoint is never split over shards. They appear in the folder when the last one is complete; until
    [`settle`], they are not in `stats.json`.
    """
    if isinstance(rows, pa.Table):
        length = rows.schema.field("parameters").type.list_size
        rows = rows.to_batches(max_chunksize=max(1, SHARD_BYTES // (4 * length)))
    if first is None:
        first = max((int(re.findall(r"\d+", file.name)[0]) for file in find_shards(path)), default=-1) + 1
    folder, staged = Path(path) / "data", Path(path) / ".append"
    # What an append that was killed has left there is no part of the dataset.
    shutil.rmtree(staged, ignore_errors=True)
    with writing(folder, staged), ExitStack() as stack:
        stack.callback(shutil.rmtree, staged, ignore_errors=True)
        for number, group in enumerate(_take_bytes(rows, SHARD_BYTES), first):
            begin = next(group)
            reader = pa.RecordBatchReader.from_batches(begin.schema, itertools.chain([begin], group))
            write_shard(reader, staged / f"train-{number:05d}.parquet")
        folder.mkdir(parents=True, exist_ok=True)
        complete = sorted(staged.glob("*.parquet"))
        announce(Path(path), [file.name for file in complete])
        for file in complete:
            os.replace(file, folder / file.name)


def recorded_runs(path: str | Path) -> Counter[str]:
    """Number of checkpoints of every run in the shards of a folder."""
    files = find_shards(path)
    return Counter(read_columns(files, read_layout(path)[0], ["run"]).column("run").to_pylist() if files else [])


def _without_known_rows(schema: pa.Schema) -> dict[bytes, bytes]:
    return {key: value for key, value in (schema.metadata or {}).items() if key != KNOWN_ROWS}


def recorded_batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    """The complete rows of a folder's recording that no shard holds yet, one batch each; a cut-off row ends them."""
    in_shards = recorded_runs(path)
    with pa.OSFile(str(check_regular(Path(path) / RECORDING))) as source:
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
