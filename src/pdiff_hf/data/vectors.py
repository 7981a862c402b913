"""Vectors of a parameter dataset for training: in memory when they fit, else in a scratch file, read as needed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import torch

from ..layout import ParameterLayout
from .dataset import dataset_vectors, load_parameter_dataset, read_layout
from .hub import config_folder
from .shards import RECORDING, check_finite, read_rows, recorded_runs, shards

# Datasets up to this size are kept in memory.
MAX_RESIDENT_BYTES = 2**28


class StoredVectors:
    """Float32 vectors `(K, D)` in a file, indexed as a tensor: by rows, `v[indices]`, or columns, `v[:, start:stop]`.

    Only what an index asks for is read into memory. Mapping the file would count every page that was touched as memory
    of the process. Rows are kept as a list, so that a part of them is a view.

    Args:
        file: An open binary file of `K * D` values in row-major order, with a descriptor.
        num_columns (`int`): D.
        rows (`torch.Tensor` of shape `(n,)`): Which rows of the file, in which order.
    """

    device = torch.device("cpu")

    def __init__(self, file, num_columns: int, rows: torch.Tensor):
        self._file, self._rows = file, rows
        self.shape = torch.Size((len(rows), num_columns))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: torch.Tensor | slice | tuple[slice, slice]) -> torch.Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        start, stop, _ = columns.indices(self.shape[1])
        numbers = self._rows[rows].tolist()
        found = torch.empty(len(numbers), max(0, stop - start))
        for row, values in zip(numbers, found.numpy(), strict=True):
            left, position = memoryview(values).cast("B"), 4 * (row * self.shape[1] + start)
            while left:
                done = os.preadv(self._file.fileno(), [left], position)
                if done == 0:
                    raise OSError(f"the scratch file ends before row {row}.")
                left, position = left[done:], position + done
        return found

    def take(self, rows: torch.Tensor) -> StoredVectors:
        """Some of the rows, without reading them."""
        return StoredVectors(self._file, self.shape[1], self._rows[rows])


def open_vectors(path: str | Path) -> tuple[torch.Tensor | StoredVectors, ParameterLayout]:
    """All vectors of a parameter dataset and their layout.

    A folder with more than `MAX_RESIDENT_BYTES` of values is copied row by row into a file of raw values in the
    directory of temporary files (`TMPDIR`), which disappears with the program.

    Args:
        path (`str` or `Path`): See [`load_parameter_dataset`].

    Returns:
        `tuple`: `torch.Tensor` or [`StoredVectors`] of shape `(K, D)`, and the layout.

    Raises:
        ValueError: as [`load_parameter_dataset`] and [`dataset_vectors`].
    """
    if Path(path).is_dir():
        folder = config_folder(path, None)
        files = [] if (folder / RECORDING).exists() else shards(folder)
        layout, _ = read_layout(folder)
        num_rows = recorded_runs(folder).total() if files else 0
        if 4 * num_rows * layout.num_parameters > MAX_RESIDENT_BYTES:
            return _store(files, layout), layout
    dataset, layout = load_parameter_dataset(path)
    return dataset_vectors(dataset, layout), layout


def take_rows(vectors: torch.Tensor | StoredVectors, rows: torch.Tensor) -> torch.Tensor | StoredVectors:
    """Some rows of vectors; of stored ones, without reading them."""
    return vectors.take(rows) if isinstance(vectors, StoredVectors) else vectors[rows]


def _store(files: list[Path], layout: ParameterLayout) -> StoredVectors:
    size, row = layout.num_parameters, 0
    scratch = tempfile.TemporaryFile()
    for table in (table for file in files for table in read_rows(file, layout)):
        for chunk in table.column("parameters").chunks:
            vectors = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size)
            check_finite(vectors, layout, first=row)
            scratch.write(memoryview(vectors).cast("B"))
            row += len(vectors)
    scratch.flush()
    pa.default_memory_pool().release_unused()
    return StoredVectors(scratch, size, torch.arange(row))


def split_rows(num_rows: int, holdout_every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training rows and of every `holdout_every`-th row, which the autoencoder never sees."""
    rows = torch.arange(num_rows)
    heldout = rows % holdout_every == holdout_every // 2
    return rows[~heldout], rows[heldout]
