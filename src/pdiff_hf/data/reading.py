"""Reading a whole parameter dataset: the shards that belong to it, and their rows as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import DatasetInfo, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable

from ..layout import ParameterLayout
from .columns import Others, arrow_schema, features
from .integrity import check_set, read_stats, some_shards
from .shards import check_shard, read_columns, read_rows, read_shard, shard_others, with_columns


def complete_shards(path: str | Path, layout: ParameterLayout) -> list[Path]:
    """The shards of a dataset folder, which are those that belong to it and hold rows.

    Raises:
        ValueError: a shard is missing, damaged, of another layout or of another dataset, or there are no rows.
    """
    files = some_shards(path)
    num_rows = sum(check_shard(file, layout) for file in files)
    if num_rows == 0:
        raise ValueError(f"{path}: expected checkpoints, found shards without rows; collect, record or import some.")
    if not check_set(path, files):
        _check_unlisted(Path(path), files, layout, num_rows)
    return files


def _check_unlisted(path: Path, files: Sequence[Path], layout: ParameterLayout, num_rows: int) -> None:
    """What can be seen of shards that `stats.json` does not list: rows that are missing, and a shard that is twice."""
    if num_rows < (expected := read_stats(path).get("num_rows", 0)):
        raise ValueError(
            f"{path}: expected {expected} rows, as stats.json says, found {num_rows}; restore the shards that are "
            "missing, or collect again."
        )
    known: dict[tuple, Path] = {}
    for file in files if len(files) > 1 else ():
        rows = read_columns([file], layout, ["run", "step"]).to_pydict()
        first = known.setdefault((*rows["run"], *rows["step"]), file)
        # Runs that were imported under one name may have the same steps.
        if first is not file and read_shard(first, layout).equals(read_shard(file, layout)):
            raise ValueError(f"{file} holds the rows of {first.name} again, which would count double; remove it.")


def stream_rows(files: Sequence[Path | str], layout: ParameterLayout) -> IterableDataset:
    """The rows of shards in torch format, read as they are asked for; those at `hf://` are not downloaded."""
    # Those on the Hub are checked when they are reached; their footers alone may take minutes.
    checked = files if isinstance(files[0], Path) else files[:1]
    others = {name: kind for file in checked for name, kind in shard_others(file, layout).items()}
    # A list is what processes and workers share between them.
    shards = ArrowExamplesIterable(_tables, {"files": list(files), "layout": layout, "others": others})
    return IterableDataset(shards, info=DatasetInfo(features=features(layout, others))).with_format("torch")


def _tables(
    files: Sequence[Path | str], layout: ParameterLayout, others: Others
) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    schema = arrow_schema(layout, others)
    for file in files:
        for number, table in enumerate(read_rows(file, layout)):
            if more := set(table.column_names) - set(schema.names):
                raise ValueError(f"{file}: expected the metrics {(*others,)} of the first shard, found {min(more)!r}.")
            yield (str(file), number), with_columns(table, schema)
