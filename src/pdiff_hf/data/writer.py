"""Writing parameter datasets: a new one, new runs behind those of another, its statistics and its card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ..base_model import BaseModel
from ..conditions import CONDITION_FILE, ConditionSpec
from ..files import replacing, restoring, write_json
from ..identity import NetworkIdentity, check_same_network, read_identity
from ..layout import ParameterLayout
from ..locks import locked
from ..os_errors import writing
from . import shards
from .card import write_dataset_card
from .columns import CONDITION, arrow_schema, metric_names
from .conditions import (
    Embed,
    check_same_conditions,
    condition_columns,
    condition_table,
    describe_conditions,
    read_conditions,
)
from .folder import SCHEMA, read_layout, write_layout
from .gauge import gauge_reference, recorded_form
from .integrity import announce, check_all, find_shards, is_settled, read_stats, settle
from .stats import compute_stats


def append_rows(
    vectors: torch.Tensor,
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    conditions: ConditionSpec | None = None,
    embed: Embed | None = None,
) -> None:
    """[`ParameterDataset.append`] to the folder `output_dir`, whose layout and base model have to be these."""
    path = Path(output_dir)
    table = _table(vectors, layout, gauge_reference(layout, base_model, Path(output_dir)), columns, conditions, embed)
    if not (path / "layout.json").is_file():
        raise ValueError(f"expected a parameter dataset at {path}, found no layout.json there.")
    with locked(path), writing(path):
        if (path / shards.RECORDING).exists():
            finish_rows(path)
        check_append(path, layout, base_model, dict.fromkeys(table.column("run").to_pylist()), conditions)
        known = find_shards(path)
        try:
            with restoring(path / "stats.json"):
                shards.append_shards(table, path)
                finish_dataset(path, metadata, _without_order(table, columns))
        except BaseException:
            # Without their statistics they are not in the dataset, and may be appended again.
            for file in find_shards(path)[len(known) :]:
                file.unlink()
            raise


def _table(
    vectors: torch.Tensor,
    layout: ParameterLayout,
    reference: torch.Tensor | None,
    columns: Mapping[str, Sequence[Any]] | None,
    conditions: ConditionSpec | None,
    embed: Embed | None,
) -> pa.Table:
    columns = condition_columns(conditions, columns or {}, embed)
    return shards.rows_table(recorded_form(layout, vectors.detach().cpu(), reference).numpy(), layout, columns)


def check_append(
    path: Path,
    layout: ParameterLayout,
    base_model: BaseModel | None,
    runs: Iterable[str],
    conditions: ConditionSpec | None = None,
) -> None:
    """Check that runs may be written to a folder; one without a dataset takes all.

    Raises:
        ValueError: the folder holds one of the runs already, another layout, another base model or other conditions,
            or is damaged.
    """
    if not (path / "layout.json").exists():
        if find_shards(path):
            raise ValueError(f"{path} holds Parquet shards without layout.json; choose another folder.")
        return
    new = NetworkIdentity.of("the new checkpoints", layout, base_model)
    check_same_network(read_identity(path), new, "choose another folder")
    check_same_conditions(path, read_conditions(path, read_stats(path)), conditions)
    for file in (files := find_shards(path)):
        shards.check_shard(file, layout)
    check_all(path, files)
    check_new_runs(path, runs)


def check_new_runs(path: Path, runs: Iterable[str]) -> None:
    """Raise `ValueError` when a folder holds one of the runs already."""
    known = set(shards.recorded_runs(path))
    if (path / shards.RECORDING).exists():
        known |= {batch.column("run")[0].as_py() for batch in shards.recorded_batches(path)}
    for run in runs:
        if run in known:
            raise ValueError(
                f"{path} already holds run {run!r}; choose another run name or folder, or go on with it from a step "
                "(ParameterRecorder.resume, Trainer.train(resume_from_checkpoint=…))."
            )


def drop_rows(path: Path, layout: ParameterLayout, run: str, first: int) -> None:
    """Remove the rows of a run from step `first` on from the shards of a locked folder, one shard after the other."""
    changed = False
    for file in find_shards(path):
        columns = shards.read_columns([file], layout)
        kept = [r != run or s < first for r, s in zip(*(columns[n].to_pylist() for n in ("run", "step")), strict=True)]
        if all(kept):
            continue
        changed = True
        announce(path, [file.name])
        if any(kept):
            shards.write_shard(shards.read_shard(file, layout).filter(pa.array(kept)), file)
        else:
            file.unlink()
    if changed and find_shards(path):
        finish_dataset(path)


def _without_order(table: pa.Table, columns: Mapping[str, Sequence[Any]] | None) -> set[str]:
    """The runs of rows whose steps are only the rows' numbers."""
    return set() if {"step", "epoch"} & {*(columns or {})} else set(table.column("run").to_pylist())


def finish_rows(path: Path, metadata: Mapping[str, Any] | None = None, unordered_runs: Iterable[str] = ()) -> None:
    """Turn the recording of a locked folder into Parquet."""
    with writing(path):
        shards.append_shards(shards.recorded_batches(path), path)
        if find_shards(path):
            finish_dataset(path, metadata, unordered_runs)
        # Stopped before this line, the rows are known to be in the shards by their run and number.
        (path / shards.RECORDING).unlink()


def save_parameter_dataset(
    vectors: torch.Tensor,
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    unordered_runs: Iterable[str] | None = None,
    *,
    conditions: ConditionSpec | None = None,
    embed: Embed | None = None,
) -> None:
    """Write vectors as a new parameter dataset.

    Args:
        vectors (`torch.Tensor` of shape `(K, D)`):
            Raw parameter values, one row per checkpoint; factors with a gauge become canonical, see `adapters.gauge`.
        layout ([`ParameterLayout`]):
            What a vector is made of.
        output_dir (`str` or `Path`):
            A folder that holds no dataset yet.
        base_model ([`BaseModel`], *optional*):
            Copied into the folder, with its weights.
        columns (`Mapping[str, Sequence]`, *optional*):
            `run`, `seed`, `step`, `epoch`, `condition` and float metrics, K values each.
        metadata (`Mapping`, *optional*):
            JSON-able, goes into `stats.json`.
        unordered_runs (`Iterable[str]`, *optional*):
            Runs whose steps are numbers of rows and say nothing of time; all of them without `step` and `epoch`.
        conditions ([`ConditionSpec`], *optional*):
            What the column `condition` is, which then every row has: K of what [`ConditionSpec.values`] takes, or a
            tensor `(K, size)`; of texts sentences, or embeddings with the sentences in a column `condition_text`.
        embed (`Callable`, *optional*):
            The encoder of sentences, `n` of them → `(n, size)`.

    Raises:
        ValueError: the folder holds a dataset already, there are no rows, shapes do not fit, a value is NaN, infinite
            or too large, or a row has no condition or one of another kind.
    """
    table = _table(vectors, layout, gauge_reference(layout, base_model, Path(output_dir)), columns, conditions, embed)
    if not len(table):
        raise ValueError(f"expected at least one checkpoint for {output_dir}, found none.")
    if unordered_runs is None:
        unordered_runs = _without_order(table, columns)
    _write_new(table, layout, output_dir, base_model, metadata, unordered_runs, conditions)


def stream_parameter_dataset(
    batches: Iterable[tuple[torch.Tensor, Mapping[str, Sequence[Any]]]],
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    conditions: ConditionSpec | None = None,
    embed: Embed | None = None,
    unordered_runs: Iterable[str] | None = None,
) -> None:
    """Write a new parameter dataset of more rows than fit into memory.

    Args:
        batches (`Iterable[tuple]`): Vectors `(k, D)` and their columns, made on the way; all of them have the same
            columns, `run` and `step` among them. Vectors are written as they are, those of generated networks too.
        layout, output_dir, base_model, metadata, conditions, embed: As of [`save_parameter_dataset`].
        unordered_runs (`Iterable[str]`, *optional*): Runs whose steps say nothing of time; all of them by default.

    Raises:
        ValueError: as [`save_parameter_dataset`]; nothing is left then.
    """
    runs: dict[str, None] = {}

    def rows() -> Iterator[pa.RecordBatch]:
        first = 0
        for vectors, columns in batches:
            stored = condition_columns(conditions, columns, embed, first=first)
            table = shards.rows_table(vectors.detach().cpu().numpy(), layout, stored, first=first)
            runs.update(dict.fromkeys(columns["run"]))
            first += len(vectors)
            yield from table.to_batches()

    unordered = runs if unordered_runs is None else unordered_runs
    _write_new(rows(), layout, output_dir, base_model, metadata, unordered, conditions)


def _write_new(
    rows: pa.Table | Iterable[pa.RecordBatch],
    layout: ParameterLayout,
    output_dir: str | Path,
    base_model: BaseModel | None,
    metadata: Mapping[str, Any] | None,
    unordered_runs: Iterable[str],
    conditions: ConditionSpec | None,
) -> None:
    output_dir = Path(output_dir)
    with locked(output_dir):
        if (output_dir / "layout.json").exists() or find_shards(output_dir):
            raise ValueError(f"{output_dir} already holds a parameter dataset; choose another folder.")
        (output_dir / CONDITION_FILE).unlink(missing_ok=True)
        with replacing(output_dir, merge=True) as folder:
            # What a person wrote there stays in the card.
            if (output_dir / "README.md").is_file():
                shutil.copy2(output_dir / "README.md", folder)
            write_layout(folder, layout, base_model, conditions)
            shards.append_shards(rows, folder)
            finish_dataset(folder, metadata, unordered_runs)


def finish_dataset(
    path: str | Path, metadata: Mapping[str, Any] | None = None, unordered_runs: Iterable[str] = ()
) -> None:
    """Write `stats.json` for the shards of a folder, and its card, `README.md`; what a person wrote there is kept.

    `metadata` and `unordered_runs` are merged into those of `stats.json`. Shards that lack a metric get it as a column
    of nulls, because `datasets.load_dataset` wants the same columns in all shards.
    """
    path = Path(path)
    layout, _ = read_layout(path)
    files = find_shards(path)
    found = {file: shards.shard_others(file, layout) for file in files}
    check_all(path, files)
    conditions = ConditionSpec.read(path)
    for file, names in found.items():
        if (CONDITION in names) == (conditions is None):
            raise ValueError(
                f"{file}: expected {'no' if conditions is None else 'a'} column {CONDITION!r}, as {CONDITION_FILE} is "
                f"{'not ' if conditions is None else ''}there; restore that file."
            )
    others = {name: kind for names in found.values() for name, kind in names.items()}
    schema = arrow_schema(layout, others)
    changed = [file for file, names in found.items() if {*others} - {*names}]
    announce(path, [file.name for file in changed])
    for file in changed:
        shards.write_shard(shards.with_columns(shards.read_shard(file, layout), schema), file)
    known = read_stats(path)
    of_conditions = {}
    if conditions is not None:
        table = condition_table(files, layout, conditions)
        of_conditions = {"conditions": describe_conditions(table, conditions, path)}
    described = {
        "schema": SCHEMA,
        **compute_stats(files, layout, metric_names(others)),
        **of_conditions,
        "unordered_runs": sorted({*known.get("unordered_runs", ()), *unordered_runs}),
        "metadata": {**known["metadata"], **(metadata or {})},
    }
    write_json(path / "stats.json", described)
    write_dataset_card(path)
    # The last step: where the card cannot be written, an append takes its statistics back, but not the shards that it
    # has given a metric.
    settle(path)


def finish_interrupted(path: Path) -> None:
    """[`finish_dataset`] where a writer was stopped before it; `ValueError` when it is still writing."""
    if not is_settled(path):
        with locked(path):
            finish_dataset(path)
