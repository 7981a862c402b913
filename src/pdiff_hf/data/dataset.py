"""Parameter datasets: the one object by which all that is known of them is read, and rows are added."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable

from ..base_model import BaseModel
from ..conditions import ConditionSpec
from ..files import atomic_folder
from ..hub.snapshot import split_hub_id
from ..identity import NetworkIdentity
from ..layout import ParameterLayout
from . import shards, writer
from .columns import CONDITION, CONDITION_TEXT, features, metric_names, other_types
from .conditions import Embed, describe_conditions, read_conditions, stored_conditions
from .folder import DEFAULT, config_folder, read_layout
from .hub import download_dataset, open_remote_dataset
from .integrity import find_shards, read_stats
from .order import RowOrder
from .reading import complete_shards, stream_rows
from .vectors import MAX_RESIDENT_BYTES, StoredVectors, dataset_vectors, store_vectors


class ParameterDataset:
    """Checkpoints of a network, one row each, with the layout, base model and task that they belong to.

    `layout.json` is read at once and only once; rows are read when they are asked for, into memory and not into the
    cache of `datasets`: a folder that was rewritten never gives old rows.

    Args:
        source (`str` or `Path`):
            Folder with `layout.json` and `data/train-*.parquet`, or `user/name[@revision]` on the Hub.
        config (`str`, *optional*):
            One of several datasets in the folder or repository, each in a folder of its own.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows from disk, or from the Hub without downloading them, as they are asked for.
        trusted_imports (`Sequence[str]`, *optional*):
            Modules or factories that may be imported to build the base model, see [`BaseModel.build`].

    Attributes:
        source (`str` or `Path`): What it was opened by.
        folder (`Path`): Where it is on this machine; of a streamed one, without the rows.
        layout ([`ParameterLayout`]): What a vector is made of.
        base_model ([`BaseModel`], *optional*): The network around.

    Raises:
        ValueError: the layout is missing or damaged, names a file outside of the folder, or there is no such config.

    Example:
    ```py
    dataset = ParameterDataset("user/params")
    model = dataset.base_model.build()
    dataset.layout.load_into(model, dataset.vectors(rows=[0])[0])
    ```
    """

    def __init__(
        self,
        source: str | Path,
        config: str | None = None,
        *,
        revision: str | None = None,
        streaming: bool = False,
        trusted_imports: Sequence[str] = (),
    ):
        self.source, self._streaming = source, streaming
        # A path never names what is on the Hub: a folder that is missing should be called missing.
        found = split_hub_id(source) if isinstance(source, str) else None
        self._is_remote, self._remote_files = found is not None, None
        if found is None and revision is not None:
            raise ValueError(f"{source} is no dataset on the Hub: expected no revision, found {revision!r}.")
        if found is None:
            self.folder = config_folder(source, config)
        else:
            repo_id, at = found
            if at and revision not in (None, at):
                raise ValueError(f"{source}: expected one revision, found {revision!r}, too.")
            where = {"revision": revision or at, "config": None if config == DEFAULT else config}
            if streaming:
                self.folder, self._remote_files = open_remote_dataset(repo_id, **where)
            else:
                self.folder = download_dataset(repo_id, **where)
        self.layout, base_model = read_layout(self.folder)
        self.base_model = None if base_model is None else replace(base_model, trusted_imports=tuple(trusted_imports))

    @classmethod
    def of(cls, source: ParameterDataset | str | Path) -> ParameterDataset:
        """`source` itself when it is a dataset, else the one that it names."""
        return source if isinstance(source, ParameterDataset) else cls(source)

    def __repr__(self) -> str:
        return f"ParameterDataset({str(self.source)!r}, num_parameters={self.layout.num_parameters})"

    def __len__(self) -> int:
        """Number of checkpoints.

        Raises:
            ValueError: there are none, a shard is damaged, or the dataset is streamed from the Hub.
        """
        if self._remote_files is not None:
            raise ValueError(f"{self.source} is streamed: its rows are counted when they are read.")
        if self._is_recording:
            return len(self._read())
        return sum(shards.check_shard(file, self.layout) for file in complete_shards(self.folder, self.layout))

    @property
    def identity(self) -> NetworkIdentity:
        """Which network the rows belong to."""
        return NetworkIdentity.of(self.source, self.layout, self.base_model)

    # What is known of the rows

    @cached_property
    def stats(self) -> dict[str, Any]:
        """Content of `stats.json`: means and spreads of metrics and tensors, and `metadata`."""
        return read_stats(self.folder)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was written beside the rows: the sections of the recipe, sources, and so on."""
        return self.stats["metadata"]

    @property
    def unordered_runs(self) -> set[str]:
        """Runs whose steps are numbers of rows, such as those of files without numbers: they say nothing of time."""
        if "unordered_runs" in self.stats or "import" not in self.metadata:
            return set(self.stats.get("unordered_runs", ()))
        # Of an import from before this was written, steps from 0 on are such numbers.
        rows = self.rows.remove_columns("parameters").with_format(None)[:]
        runs: dict[str, list[tuple]] = {}
        for run, step, epoch in zip(rows["run"], rows["step"], rows["epoch"], strict=True):
            runs.setdefault(run, []).append((step, epoch))
        return {run for run, times in runs.items() if times == [(number, None) for number in range(len(times))]}

    @property
    def order(self) -> RowOrder:
        """Runs and times of the rows; the vectors are not read.

        Raises:
            ValueError: as `metrics`.
        """
        return RowOrder.of_table(self._columns("order"), self.unordered_runs)

    @property
    def task(self) -> dict[str, Any] | None:
        """The stored `task` section, `None` when the dataset names none; `open_task` makes a task of it."""
        return self.metadata.get("task")

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """The metrics as float32 tensors `(K,)` by name, NaN where a row has none; the vectors are not read.

        Raises:
            ValueError: a shard is damaged, or the dataset is streamed from the Hub.
        """
        table = self._columns("metrics")
        columns = {name: table.column(name).cast(pa.float32()) for name in metric_names(table.column_names)}
        return {name: torch.tensor(values.to_numpy(), dtype=torch.float32) for name, values in columns.items()}

    @property
    def populations(self) -> list[str] | None:
        """Of which population every row is, `None` for a dataset of one; to judge by, never to train with.

        What the populations are is in `metadata["populations"]`.

        Raises:
            ValueError: as `metrics`.
        """
        table = self._columns("populations")
        return table.column("population").to_pylist() if "population" in table.column_names else None

    @property
    def tasks(self) -> list[str] | None:
        """The task of every row by its name, `None` for a dataset of one; conditions say it in numbers.

        Raises:
            ValueError: as `metrics`.
        """
        table = self._columns("tasks")
        return table.column("task").to_pylist() if "task" in table.column_names else None

    @cached_property
    def condition_spec(self) -> ConditionSpec | None:
        """What the conditions of the rows are, `None` for a dataset without.

        Raises:
            ValueError: `condition.json` is damaged, or not the one that the rows were written with.
        """
        return read_conditions(self.folder, self.stats)

    def conditions(self, rows: slice | Sequence[int] | torch.Tensor = slice(None)) -> torch.Tensor:
        """The conditions of rows as they are stored, `(K, size)` float32; `condition_spec` says what they are.

        Raises:
            ValueError: the dataset has none, one is not of its kind, or as `metrics`.
        """
        values = stored_conditions(self._columns("conditions"), self.condition_spec, self.folder)
        return values[rows if isinstance(rows, slice) else torch.as_tensor(rows)]

    def describe_conditions(self) -> dict[str, Any] | None:
        """The kind of the conditions, how many different ones there are, and rows of each; `None` without any.

        Raises:
            ValueError: as `conditions`.
        """
        if self.condition_spec is None:
            return None
        return describe_conditions(self._columns("conditions"), self.condition_spec, self.folder)

    @property
    def condition_texts(self) -> list[str] | None:
        """The sentences of conditions of kind text, `None` for others; raises `ValueError` as `metrics`."""
        table = self._columns("conditions")
        return table.column(CONDITION_TEXT).to_pylist() if CONDITION_TEXT in table.column_names else None

    def _columns(self, wanted: str) -> pa.Table:
        """All columns but the vectors."""
        if self._remote_files is not None:
            raise ValueError(f"{self.source} is streamed: its {wanted} are read with its rows.")
        if self._is_recording:
            return self._read().data.table
        return shards.read_columns(complete_shards(self.folder, self.layout), self.layout)

    # Rows

    @property
    def rows(self) -> Dataset | IterableDataset:
        """The rows in torch format, read anew at every call.

        Of a recording that was cut off, the complete rows are there, with a warning.

        Raises:
            ValueError: there are none, or a shard is damaged or does not fit the layout.
        """
        if not self._streaming:
            return self._read()
        if self._is_recording:
            return self._read().to_iterable_dataset().with_format("torch")
        return stream_rows(self._remote_files or complete_shards(self.folder, self.layout), self.layout)

    def vectors(
        self, rows: slice | Sequence[int] | torch.Tensor | None = None, columns: slice | None = None
    ) -> torch.Tensor | StoredVectors:
        """The vectors, checked to be finite.

        Args:
            rows (`slice`, `Sequence[int]` or `torch.Tensor`, *optional*): Which checkpoints; all by default.
            columns (`slice`, *optional*): Which values of each; all by default.

        Returns:
            `torch.Tensor` of shape `(K, D)` when rows or columns are named or all take no more than
            `MAX_RESIDENT_BYTES`; else [`StoredVectors`], a scratch file in the directory of temporary files (`TMPDIR`)
            that is indexed in the same way and disappears with the dataset.

        Raises:
            ValueError: a value is NaN or infinite (row and tensor are named), a shard is damaged, or the dataset is
                streamed.
        """
        if self._streaming:
            raise ValueError(f"{self.source} is streamed: read .rows, or open it without streaming.")
        if not self._is_recording and 4 * len(self) * self.layout.num_parameters > MAX_RESIDENT_BYTES:
            found = self._stored
        else:
            found = dataset_vectors(self._read(), self.layout)
        if rows is None and columns is None:
            return found
        index = slice(None) if rows is None else rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return found[index, slice(None) if columns is None else columns]

    @cached_property
    def _stored(self) -> StoredVectors:
        return store_vectors(complete_shards(self.folder, self.layout), self.layout)

    @property
    def _is_recording(self) -> bool:
        return (self.folder / shards.RECORDING).is_file()

    def _read(self) -> Dataset:
        is_recording, recording = self._is_recording, self.folder / shards.RECORDING
        files = [] if is_recording and not find_shards(self.folder) else complete_shards(self.folder, self.layout)
        tables = [shards.read_shard(file, self.layout) for file in files]
        if is_recording:
            warnings.warn(
                f"{recording} was not closed; its complete rows are read. To turn it into Parquet: "
                f"{shards.FINISH_COMMAND.format(self.folder)}",
                stacklevel=3,
            )
            batches = list(shards.recorded_batches(self.folder))
            tables += [pa.Table.from_batches(batches)] if batches else []
            if not tables:
                raise ValueError(f"{recording} holds no complete row; record again.")
        table = pa.concat_tables(tables, promote_options="default")
        columns = features(self.layout, other_types(table.schema))
        # A random fingerprint, because the default one is a hash over all values.
        rows = InMemoryTable(table.select(list(columns)).cast(columns.arrow_schema))
        return Dataset(rows, fingerprint=uuid.uuid4().hex).with_format("torch")

    # Writing

    @classmethod
    def write(
        cls,
        vectors: torch.Tensor,
        layout: ParameterLayout,
        folder: str | Path,
        base_model: BaseModel | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        conditions: ConditionSpec | None = None,
        embed: Embed | None = None,
    ) -> ParameterDataset:
        """Write vectors as a new parameter dataset, see [`save_parameter_dataset`], and open it."""
        kinds = {"conditions": conditions, "embed": embed}
        writer.save_parameter_dataset(vectors, layout, folder, base_model, columns, metadata, **kinds)
        return cls(folder, trusted_imports=() if base_model is None else base_model.trusted_imports)

    def append(
        self,
        vectors: torch.Tensor,
        columns: Mapping[str, Sequence[Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        embed: Embed | None = None,
    ) -> None:
        """Append vectors of new runs in new shards; those that are there stay as they are.

        Killed at any time, it leaves the dataset as it was or with the new rows. Old shards are rewritten only when
        the new rows have a metric that they lack, which they get as a column of nulls.

        Args:
            vectors (`torch.Tensor` of shape `(K, D)`): Raw parameter values, one row per checkpoint.
            columns (`Mapping[str, Sequence]`, *optional*): `run`, `seed`, `step`, `epoch` and float metrics, K each;
                and `condition` where the dataset has conditions, see [`save_parameter_dataset`].
            metadata (`Mapping`, *optional*): JSON-able, goes into `stats.json`.
            embed (`Callable`, *optional*): The encoder of sentences.

        Raises:
            ValueError: the dataset holds one of the runs already, the rows do not fit, or it is on the Hub.
        """
        if self._is_remote:
            raise ValueError(f"{self.source} is on the Hub: push new runs with pdiff push dataset --append.")
        conditions = self.condition_spec
        writer.append_rows(vectors, self.layout, self.folder, self.base_model, columns, metadata, conditions, embed)
        self.__dict__.pop("stats", None)
        self.__dict__.pop("_stored", None)

    def copy_first(self, num_rows: int, folder: str | Path) -> ParameterDataset:
        """Write the first rows as a new dataset, with base model, metrics and metadata, and open it.

        Args:
            num_rows (`int`): How many rows.
            folder (`str` or `Path`): New folder; it gets its name when it is complete.

        Raises:
            ValueError: there are fewer rows, or the folder exists.
        """
        rows = self._read()
        if not 1 <= num_rows <= len(rows):
            raise ValueError(
                f"expected 1 to {len(rows)} rows of {self.folder}, found {num_rows}; collect more checkpoints."
            )
        if Path(folder).exists():
            raise ValueError(f"{folder} exists already; choose another folder.")
        first = rows.select(range(num_rows))
        columns = first.remove_columns("parameters").with_format(None)[:]
        metadata = {**self.metadata, "first_rows": num_rows}
        with atomic_folder(folder) as partial:
            vectors = dataset_vectors(first, self.layout)
            order, conditions = self.unordered_runs, self.condition_spec
            if conditions is not None:
                columns[CONDITION] = self.conditions(slice(num_rows))
            writer.save_parameter_dataset(
                vectors, self.layout, partial, self.base_model, columns, metadata, order, conditions=conditions
            )
        return type(self)(folder, trusted_imports=() if self.base_model is None else self.base_model.trusted_imports)


def load_parameter_dataset(
    path: str | Path, config: str | None = None, revision: str | None = None, streaming: bool = False
) -> tuple[Dataset | IterableDataset, ParameterLayout]:
    """Rows and layout of a parameter dataset: those of [`ParameterDataset`], whose arguments these are."""
    dataset = ParameterDataset(path, config, revision=revision, streaming=streaming)
    return dataset.rows, dataset.layout


def load_base_model(path: str | Path) -> BaseModel | None:
    """The base model of a folder with a `layout.json`, or `None` when it carries none."""
    return ParameterDataset(path).base_model
