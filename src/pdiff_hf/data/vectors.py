"""Vectors of many networks: in memory when they fit, else in a scratch file, read and written as needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..layout import ParameterLayout
from ..machine import default_device, free_memory
from ..os_errors import writing
from .shards import check_values, read_rows, vector_blocks

# Datasets, and networks made of them, are kept in memory up to this size.
MAX_RESIDENT_BYTES = 2**28
# Others go to an accelerator in blocks of so many bytes.
BLOCK_BYTES = 2**26


class StoredVectors:
    """Float32 vectors `(K, D)` in a file, indexed as a tensor: by rows, `v[indices]`, or columns, `v[:, start:stop]`.

    Only what an index asks for is read into memory, pinned memory where there is an accelerator;
    `v[rows, start:stop] = values` writes. Mapping the file would count every page that was touched as memory of the
    process. Rows are kept as a list, so that a part of them is a view.

    Args:
        file: An open binary file of `K * D` values in row-major order, with a descriptor.
        num_columns (`int`): D.
        rows (`torch.Tensor` of shape `(n,)`): Which rows of the file, in which order.
    """

    device, dtype, ndim = torch.device("cpu"), torch.float32, 2

    def __init__(self, file, num_columns: int, rows: torch.Tensor):
        self._file, self._rows = file, rows
        self._pins = default_device().type != "cpu"
        self.shape = torch.Size((len(rows), num_columns))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: torch.Tensor | slice | tuple[torch.Tensor | slice, slice]) -> torch.Tensor:
        numbers, start, stop = self._places(index)
        found = torch.empty(len(numbers), stop - start, pin_memory=self._pins)
        for row, values in zip(numbers, found.numpy(), strict=True):
            left, position = memoryview(values).cast("B"), 4 * (row * self.shape[1] + start)
            while left:
                done = os.preadv(self._file.fileno(), [left], position)
                if done == 0:
                    raise OSError(f"the scratch file ends before row {row}.")
                left, position = left[done:], position + done
        return found

    def __setitem__(
        self, index: torch.Tensor | slice | tuple[torch.Tensor | slice, slice], values: torch.Tensor
    ) -> None:
        numbers, start, stop = self._places(index)
        values = values.to("cpu", torch.float32).expand(len(numbers), stop - start).contiguous().numpy()
        with writing(tempfile.gettempdir()):
            for row, own in zip(numbers, values, strict=True):
                left, position = memoryview(own).cast("B"), 4 * (row * self.shape[1] + start)
                while left:
                    done = os.pwritev(self._file.fileno(), [left], position)
                    left, position = left[done:], position + done

    def _places(self, index: torch.Tensor | slice | tuple[torch.Tensor | slice, slice]) -> tuple[list[int], int, int]:
        """Rows of the file, and the first column and the one behind the last."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        start, stop, _ = columns.indices(self.shape[1])
        return self._rows[rows].tolist(), start, max(start, stop)

    def take(self, rows: torch.Tensor) -> StoredVectors:
        """Some of the rows, without reading them."""
        return StoredVectors(self._file, self.shape[1], self._rows[rows])


Vectors = torch.Tensor | StoredVectors
"""Networks `(n, D)`, in memory or in a file."""


def take_rows(vectors: Vectors, rows: torch.Tensor) -> Vectors:
    """Some rows of vectors; of stored ones, without reading them."""
    return vectors[rows] if isinstance(vectors, torch.Tensor) else vectors.take(rows)


def empty_vectors(num_rows: int, like: Vectors) -> Vectors:
    """Room for so many networks as `like` `(K, D)`, which has to be written before it is read.

    A tensor on its device; in the memory of the machine only up to `MAX_RESIDENT_BYTES` or of a single network, and
    else a scratch file in the directory of temporary files (`TMPDIR`) that disappears with the object.
    """
    num_columns = like.shape[1]
    if like.device.type == "cpu" and num_rows > 1 and 4 * num_rows * num_columns > MAX_RESIDENT_BYTES:
        return StoredVectors(tempfile.TemporaryFile(buffering=0), num_columns, torch.arange(num_rows))
    return torch.empty(num_rows, num_columns, dtype=like.dtype, device=like.device)


def column_slices(num_rows: int, num_columns: int, num_values: int) -> Iterator[slice]:
    """Columns of so many rows, as many at a time as have no more than `num_values` values."""
    width = max(1, num_values // max(1, num_rows))
    return (slice(start, min(start + width, num_columns)) for start in range(0, num_columns, width))


def row_slices(num_rows: int, num_columns: int, num_values: int) -> Iterator[slice]:
    """Rows of so many columns, as many at a time as have no more than `num_values` values, at least one."""
    size = max(1, num_values // max(1, num_columns))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def load_onto(vectors: torch.Tensor | StoredVectors, device: torch.device) -> torch.Tensor | StoredVectors:
    """Vectors on the device of a training; stored ones are loaded if they fit into half of an accelerator's memory."""
    if isinstance(vectors, torch.Tensor):
        return vectors.to(device)
    num_rows, num_columns = vectors.shape
    if device.type == "cpu" or 4 * num_rows * num_columns > free_memory(device) // 2:
        return vectors
    loaded, step = torch.empty(vectors.shape, device=device), max(1, BLOCK_BYTES // (4 * num_columns))
    for start in range(0, num_rows, step):
        loaded[start : start + step].copy_(vectors[start : start + step], non_blocking=True)
    return loaded


def store_vectors(files: Sequence[Path], layout: ParameterLayout) -> StoredVectors:
    """Copy the vectors of shards row by row into a scratch file in the directory of temporary files (`TMPDIR`).

    Raises:
        ValueError: a value is NaN, infinite or too large, or a shard is damaged.
        OSError: there is no room.
    """
    row, scratch = 0, tempfile.TemporaryFile()
    with writing(tempfile.gettempdir()):
        for table in (table for file in files for table in read_rows(file, layout)):
            for vectors in vector_blocks(table):
                check_values(vectors, layout, first=row)
                scratch.write(memoryview(vectors).cast("B"))
                row += len(vectors)
        scratch.flush()
    pa.default_memory_pool().release_unused()
    return StoredVectors(scratch, layout.num_parameters, torch.arange(row))


def split_rows(num_rows: int, holdout_every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training rows and of every `holdout_every`-th row, which the autoencoder never sees."""
    rows = torch.arange(num_rows)
    heldout = rows % holdout_every == holdout_every // 2
    return rows[~heldout], rows[heldout]


def dataset_vectors(dataset: Dataset, layout: ParameterLayout) -> torch.Tensor:
    """All vectors of a dataset as one float32 tensor `(K, D)`.

    Raises:
        ValueError: a vector has another length, or a value is NaN, infinite or too large; row and tensor are named.
    """
    table, size = dataset.with_format("arrow")[:], layout.num_parameters
    if (found := table.schema.field("parameters").type.list_size) != size:
        raise ValueError(f"expected vectors of {size} values, found {found}.")
    vectors, row = np.empty((len(dataset), size), dtype=np.float32), 0
    for block in vector_blocks(table):
        # Checked while they are in the processor's cache, which halves the time.
        for part in np.array_split(block, -(-block.nbytes // 2**20) or 1):
            vectors[row : row + len(part)] = part
            check_values(vectors[row : row + len(part)], layout, first=row)
            row += len(part)
    return torch.from_numpy(vectors)
