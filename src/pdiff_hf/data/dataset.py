"""Parameter datasets: a folder of Parquet shards, `layout.json`, `stats.json` and the base model's weights."""

from __future__ import annotations

import glob
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset, load_dataset
from datasets.table import InMemoryTable
from pyarrow.dataset import ParquetFragmentScanOptions

from ..base_model import BaseModel
from ..files import read_json, write_json
from ..layout import ParameterLayout
from .chunks import COLUMNS, chunk_features, chunk_lengths, is_chunked, join_chunks
from .configs import DEFAULT, config_folder
from .shards import (
    KEYS,
    RECORDING,
    SHARD_BYTES,
    append_shards,
    arrow_schema,
    check_finite,
    check_metric,
    check_shard,
    features,
    metric_names,
    read_shard,
    recorded_batches,
    recorded_runs,
    rows_table,
    shards,
    with_columns,
    write_shard,
)
from .stats import compute_stats

SCHEMA = 1


def read_layout(path: str | Path) -> tuple[ParameterLayout, BaseModel | None]:
    """Read `layout.json` of a dataset folder.

    Raises:
        ValueError: it is missing or damaged, or names a file outside of the folder.
    """
    if not Path(path).is_dir():
        raise ValueError(f"expected a parameter dataset at {path}, found no such folder.")
    file = Path(path) / "layout.json"
    values = read_json(file)
    try:
        base = values["base_model"]
        return ParameterLayout.from_dict(values), None if base is None else BaseModel.from_dict(base, root=path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def load_base_model(path: str | Path) -> BaseModel | None:
    """The base model of a dataset folder, or `None` when it carries none.

    Raises:
        ValueError: `layout.json` is missing or damaged, or names a file outside of the folder.
    """
    return read_layout(path)[1]


def load_parameter_dataset(
    path: str | Path, config: str | None = None, revision: str | None = None, streaming: bool = False
) -> tuple[Dataset | IterableDataset, ParameterLayout]:
    """Load a parameter dataset from a folder or the Hub.

    Rows are read into memory, not into the cache of `datasets`: a folder that was rewritten never gives old rows.

    Args:
        path (`str` or `Path`):
            Folder with `layout.json` and `data/train-*.parquet`, or `user/name[@revision]` on the Hub.
        config (`str`, *optional*):
            One of several datasets in the folder or repository, each in a folder of its own.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows from disk, or from the Hub without downloading them, as they are asked for.

    Returns:
        `tuple[Dataset | IterableDataset, ParameterLayout]`: the rows in torch format, and what their vectors are made
        of. Of a recording that was cut off, the complete rows are there, with a warning.

    Raises:
        ValueError: the layout or a shard is missing, damaged or does not fit, or there is no such config.
    """
    found = None
    if not Path(path).exists():
        # Imported when it is needed: what knows the Hub loads much of diffusers.
        from ..hub.download import download_dataset, open_remote_dataset
        from ..hub.resolve import split_hub_id

        found = split_hub_id(path)
    if found is not None:
        repo_id, at = found
        if at and revision not in (None, at):
            raise ValueError(f"{path}: expected one revision, found {revision!r}, too.")
        where = {"revision": revision or at, "config": None if config == DEFAULT else config}
        if streaming:
            folder, files = open_remote_dataset(repo_id, **where)
            layout, _ = read_layout(folder)
            # The others are checked when they are reached; their footers alone may take minutes.
            return _stream(files, check_shard(files[0], layout).names, layout), layout
        path = download_dataset(repo_id, **where)
    elif revision is not None:
        raise ValueError(f"{path} is no dataset on the Hub: expected no revision, found {revision!r}.")
    else:
        path = config_folder(path, config)
    layout, _ = read_layout(path)
    files, recording = shards(path), path / RECORDING
    if not files and not recording.is_file():
        raise ValueError(f"expected Parquet shards {path / 'data' / 'train-*.parquet'}, found none.")
    if streaming and not recording.is_file():
        names = dict.fromkeys(name for file in files for name in check_shard(file, layout).names)
        return _stream([glob.escape(str(file.absolute())) for file in files], names, layout), layout
    tables = [read_shard(file, layout) for file in files]
    if recording.is_file():
        warnings.warn(
            f"{recording} was not closed; its complete rows are read. finish_recording turns it into Parquet.",
            stacklevel=2,
        )
        batches = list(recorded_batches(path))
        tables += [pa.Table.from_batches(batches)] if batches else []
        if not tables:
            raise ValueError(f"{recording} holds no complete row; record again.")
    table = pa.concat_tables(tables, promote_options="default")
    columns = features(layout, metric_names(table.column_names))
    # A random fingerprint, because the default one is a hash over all values.
    rows = InMemoryTable(table.select(list(columns)).cast(columns.arrow_schema))
    dataset = Dataset(rows, fingerprint=uuid.uuid4().hex).with_format("torch")
    return dataset.to_iterable_dataset().with_format("torch") if streaming else dataset, layout


def _stream(files: list[str], columns: Iterable[str], layout: ParameterLayout) -> IterableDataset:
    rows = features(layout, metric_names(columns))
    chunked = is_chunked(layout.num_parameters)
    stored = chunk_features(rows) if chunked else rows
    # Fetched ahead, the bytes of a shard would stay in memory while it is read.
    scan = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=2**22)
    options = {"features": stored, "fragment_scan_options": scan, "split": "train", "streaming": True}
    dataset = load_dataset("parquet", data_files=files, **options)
    if chunked:
        dataset = dataset.with_format("arrow").map(
            join_chunks,
            batched=True,
            batch_size=len(chunk_lengths(layout.num_parameters)),
            fn_kwargs={"schema": rows.arrow_schema, "layout": layout},
            features=rows,
            remove_columns=[*COLUMNS],
        )
    return dataset.with_format("torch")


def dataset_vectors(dataset: Dataset, layout: ParameterLayout) -> torch.Tensor:
    """All vectors of a dataset as one float32 tensor `(K, D)`.

    Raises:
        ValueError: a vector has another length, or a value is NaN or infinite; the row and the tensor are named.
    """
    size = layout.num_parameters
    vectors = np.empty((len(dataset), size), dtype=np.float32)
    row = 0
    for chunk in dataset.with_format("arrow")[:].column("parameters").chunks:
        if chunk.type.list_size != size:
            raise ValueError(f"expected vectors of {size} values, found {chunk.type.list_size}.")
        block = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size)
        # Checked while they are in the processor's cache, which halves the time.
        for part in np.array_split(block, -(-block.nbytes // 2**20) or 1):
            vectors[row : row + len(part)] = part
            check_finite(vectors[row : row + len(part)], layout, first=row)
            row += len(part)
    return torch.from_numpy(vectors)


def save_parameter_dataset(
    vectors: torch.Tensor,
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write vectors as a new parameter dataset.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`):
            Raw parameter values, one row per checkpoint.
        layout ([`ParameterLayout`]):
            What a vector is made of.
        output_dir (`str` or `Path`):
            A folder that holds no dataset yet.
        base_model ([`BaseModel`], *optional*):
            Copied into the folder, with its weights.
        columns (`Mapping[str, Sequence]`, *optional*):
            `run`, `seed`, `step`, `epoch` and float metrics, K values each.
        metadata (`Mapping`, *optional*):
            JSON-able, goes into `stats.json`.

    Raises:
        ValueError: the folder holds a dataset already, shapes do not fit, or a value is NaN or infinite.
    """
    output_dir = Path(output_dir)
    if (output_dir / "layout.json").exists() or shards(output_dir):
        raise ValueError(f"{output_dir} already holds a parameter dataset; choose another folder.")
    table = rows_table(vectors.detach().cpu().numpy(), layout, columns or {})
    write_layout(output_dir, layout, base_model)
    append_shards(table.to_batches(max_chunksize=max(1, SHARD_BYTES // (4 * layout.num_parameters))), output_dir)
    finish_dataset(output_dir, metadata)


def update_columns(path: str | Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Add or replace metrics of a dataset folder; every shard is rewritten whole or not at all.

    Args:
        path (`str` or `Path`): Folder of the dataset.
        columns (`Mapping[str, Sequence[float]]`): One value for every row, in the order of the dataset.

    Raises:
        ValueError: a column identifies rows, has another length than the dataset, or holds a NaN or an infinity.
    """
    layout, _ = read_layout(path)
    if (Path(path) / RECORDING).exists():
        raise ValueError(f"{path} holds a recording that was not closed; call finish_recording first.")
    num_rows = recorded_runs(path).total()
    for name, values in columns.items():
        if name in KEYS or name == "parameters":
            raise ValueError(f"column {name!r} identifies rows and cannot be replaced; choose a metric's name.")
        if len(values) != num_rows:
            raise ValueError(f"column {name!r}: expected {num_rows} values, found {len(values)}.")
        check_metric(name, values)
    start = 0
    for file in shards(path):
        table = read_shard(file, layout)
        stop = start + len(table)
        arrays = dict(zip(table.column_names, table.columns, strict=True))
        arrays |= {name: pa.array(list(values[start:stop]), pa.float32()) for name, values in columns.items()}
        schema = arrow_schema(layout, metric_names(arrays))
        write_shard(pa.table([arrays[name] for name in schema.names], schema=schema), file)
        start = stop
    finish_dataset(path)


def write_layout(path: str | Path, layout: ParameterLayout, base_model: BaseModel | None) -> None:
    """Write `layout.json`, and the base model's weights beside it when it has any."""
    if base_model is not None and base_model.weights is not None:
        base_model = base_model.copy_to(path)
    base = None if base_model is None else base_model.to_dict()
    write_json(Path(path) / "layout.json", {**layout.to_dict(), "base_model": base})


def finish_dataset(path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `stats.json` for the shards of a folder, and its card, `README.md`; what a person wrote there is kept.

    `metadata` is merged into that of `stats.json`. Shards that lack a metric get it as a column of nulls, because
    `datasets.load_dataset` wants the same columns in all shards.
    """
    path = Path(path)
    layout, _ = read_layout(path)
    files = shards(path)
    metrics = metric_names(dict.fromkeys(name for file in files for name in check_shard(file, layout).names))
    schema = arrow_schema(layout, metrics)
    stored = {*schema.names} - {"parameters"}
    for file in files:
        if stored - {*check_shard(file, layout).names}:
            write_shard(with_columns(read_shard(file, layout), schema), file)
    known = read_json(path / "stats.json")["metadata"] if (path / "stats.json").is_file() else {}
    stats = compute_stats(files, layout, metrics)
    write_json(path / "stats.json", {"schema": SCHEMA, **stats, "metadata": {**known, **(metadata or {})}})
    # What knows the cards loads much else.
    from ..hub.dataset_card import write_dataset_card

    write_dataset_card(path)
