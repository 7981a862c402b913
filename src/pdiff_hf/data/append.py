"""Appending runs to a parameter dataset; the shards that are there stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..base_model import BaseModel
from ..layout import ParameterLayout
from .dataset import finish_dataset, read_layout
from .shards import (
    RECORDING,
    SHARD_BYTES,
    append_shards,
    arrow_schema,
    check_shard,
    metric_names,
    read_shard,
    recorded_batches,
    recorded_runs,
    rows_table,
    shards,
    with_columns,
)


def append_parameter_dataset(
    vectors: torch.Tensor,
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Append vectors of new runs to a parameter dataset, in new shards.

    Killed at any time, it leaves the dataset as it was or with the new rows. Old shards are rewritten only when the
    new rows have a metric that they lack, which they get as a column of nulls.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`):
            Raw parameter values, one row per checkpoint.
        layout ([`ParameterLayout`]):
            What a vector is made of; that of the dataset.
        output_dir (`str` or `Path`):
            Folder of the dataset.
        base_model ([`BaseModel`], *optional*):
            That of the dataset; checked when it is given.
        columns (`Mapping[str, Sequence]`, *optional*):
            `run`, `seed`, `step`, `epoch` and float metrics, K values each.
        metadata (`Mapping`, *optional*):
            JSON-able, goes into `stats.json`.

    Raises:
        ValueError: there is no dataset, it has another layout or base model or holds one of the runs already, or the
            rows do not fit.
    """
    table = rows_table(vectors.detach().cpu().numpy(), layout, columns or {})
    _append([table], layout, base_model, Path(output_dir), metadata)


def append_dataset_folder(folder: str | Path, output_dir: str | Path) -> None:
    """Append all rows of one parameter dataset to another, one shard in memory at a time.

    Args:
        folder (`str` or `Path`): The dataset to copy from.
        output_dir (`str` or `Path`): The dataset that grows; see [`append_parameter_dataset`].

    Raises:
        ValueError: layout or base model differ, both hold a run of the same name, or a file is missing or damaged.
    """
    layout, base_model = read_layout(folder)
    if (Path(folder) / RECORDING).exists():
        raise ValueError(f"{folder} holds a recording that was not closed; call finish_recording first.")
    files = shards(folder)
    if not files:
        raise ValueError(f"expected Parquet shards {Path(folder) / 'data' / 'train-*.parquet'}, found none.")
    metrics = dict.fromkeys(name for file in files for name in metric_names(check_shard(file, layout).names))
    schema = arrow_schema(layout, metrics)
    tables = (with_columns(read_shard(file, layout), schema) for file in files)
    _append(tables, layout, base_model, Path(output_dir), None, recorded_runs(folder))


def _append(tables, layout, base_model, path, metadata, runs=None) -> None:
    if not (path / "layout.json").is_file():
        raise ValueError(f"expected a parameter dataset at {path}, found no layout.json there.")
    if runs is None:
        runs = dict.fromkeys(tables[0].column("run").to_pylist())
    lock = lock_folder(path)
    try:
        if (path / RECORDING).exists():
            finish_rows(path)
        check_append(path, layout, base_model, runs)
        rows = max(1, SHARD_BYTES // (4 * layout.num_parameters))
        append_shards((batch for table in tables for batch in table.to_batches(max_chunksize=rows)), path)
        finish_dataset(path, metadata)
    finally:
        unlock_folder(lock)


def check_append(path: Path, layout: ParameterLayout, base_model: BaseModel | None, runs: Iterable[str]) -> None:
    """Check that runs may be written to a folder; one without a dataset takes all.

    Raises:
        ValueError: the folder holds one of the runs already, another layout or another base model.
    """
    if not (path / "layout.json").exists():
        if shards(path):
            raise ValueError(f"{path} holds Parquet shards without layout.json; choose another folder.")
        return
    found, found_base = read_layout(path)
    if found.fingerprint != layout.fingerprint:
        raise ValueError(
            f"{path} holds checkpoints of another layout: expected fingerprint {layout.fingerprint[:12]}, found "
            f"{found.fingerprint[:12]}; choose another folder."
        )
    if base_model is not None and base_model != found_base:
        raise ValueError(f"{path} holds checkpoints of another base model; choose another folder.")
    for file in shards(path):
        check_shard(file, layout)
    known = set(recorded_runs(path))
    if (path / RECORDING).exists():
        known |= {batch.column("run")[0].as_py() for batch in recorded_batches(path)}
    for run in runs:
        if run in known:
            raise ValueError(f"{path} already holds run {run!r}; choose another run name or folder.")


def finish_rows(path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Turn the recording of a locked folder into Parquet."""
    append_shards(recorded_batches(path), path)
    # Stopped before this line, the rows are known to be in the shards by their run and number.
    (path / RECORDING).unlink()
    if shards(path):
        finish_dataset(path, metadata)


def lock_folder(path: Path) -> FileLock:
    """Keep other writers off a folder.

    Raises:
        ValueError: another one is writing to it.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".recording.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another recorder is writing to {path}; close it first, or choose another folder."
        ) from error
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Let others write again."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
