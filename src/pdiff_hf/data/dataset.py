"""Parameter datasets: a folder of Parquet shards, `layout.json`, `stats.json` and the base model's weights."""

from __future__ import annotations

import glob
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset, load_dataset
from datasets.table import InMemoryTable
from pyarrow.dataset import ParquetFragmentScanOptions

from ..base_model import BaseModel
from ..files import read_json
from ..hub.snapshot import split_hub_id
from ..layout import ParameterLayout
from .chunks import COLUMNS, chunk_features, chunk_lengths, is_chunked, join_chunks
from .hub import DEFAULT, config_folder, download_dataset, open_remote_dataset
from .shards import RECORDING, check_finite, check_shard, features, metric_names, read_shard, recorded_batches, shards

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
