"""Writing parameter datasets: a new one, new runs behind those of another, its statistics and its card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from ..base_model import BaseModel
from ..files import read_json, write_json
from ..layout import ParameterLayout
from .card import write_dataset_card
from .dataset import SCHEMA, dataset_vectors, load_base_model, load_parameter_dataset, read_layout
from .shards import (
    KEYS,
    RECORDING,
    SHARD_BYTES,
    append_shards,
    arrow_schema,
    check_metric,
    check_shard,
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
    write_dataset_card(path)


def copy_first_rows(path: str | Path, output_dir: str | Path, num_rows: int) -> None:
    """Write the first rows of a parameter dataset as a new one, with its base model, metrics and metadata.

    The folder gets its name when it is complete.

    Args:
        path (`str` or `Path`): The dataset to copy from.
        output_dir (`str` or `Path`): New folder.
        num_rows (`int`): How many rows.

    Raises:
        ValueError: the dataset is missing or damaged or has fewer rows, or `output_dir` holds a dataset.
    """
    dataset, layout = load_parameter_dataset(path)
    if not 1 <= num_rows <= len(dataset):
        raise ValueError(f"expected 1 to {len(dataset)} rows of {path}, found {num_rows}; collect more checkpoints.")
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists already; choose another folder.")
    first = dataset.select(range(num_rows))
    columns = first.remove_columns("parameters").with_format(None)[:]
    partial = Path(output_dir).with_name(f".{Path(output_dir).name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    metadata = read_json(Path(path) / "stats.json")["metadata"]
    save_parameter_dataset(
        dataset_vectors(first, layout),
        layout,
        partial,
        load_base_model(path),
        columns,
        {**metadata, "first_rows": num_rows},
    )
    partial.rename(output_dir)
