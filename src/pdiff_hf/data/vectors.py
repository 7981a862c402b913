"""Vectors of a parameter dataset for training: in memory when they fit, else in a scratch file, read as needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..layout import ParameterLayout
from ..machine import default_device, free_memory
from ..os_errors import writing
from .shards import check_values, read_rows, vector_blocks

# Datasets up to this size are kept in memory.
MAX_RESIDENT_BYTES = 2**28
# Others go to an accelerator in blocks of so many bytes.
BLOCK_BYTES = 2**26


class StoredVectors:
    """Float32 vectors `(K, D)` in a file, indexed as a tensor: by rows, `v[indices]`, or columns, `v[:, start:stop]`.

    Only what an index asks for is read into memory, pinned memory where there is an accelerator. Mapping the file
    would count every page that was touched as memory of the process. Rows are kept as a list, so that a part of them
    is a view.

    Args:
        file: An open binary file of `K * D` values in row-major order, with a descriptor.
        num_columns (`int`): D.
        rows (`torch.Tensor` of shape `(n,)`): Which rows of the file, in which order.
    """

    device = torch.device("cpu")

    def __init__(self, file, num_columns: int, rows: torch.Tensor):
        self._file, self._rows = file, rows
        self._pins = default_device().type != "cpu"
        self.shape = torch.Size((len(rows), num_columns))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: torch.Tensor | slice | tuple[slice, slice]) -> torch.Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        start, stop, _ = columns.indices(self.shape[1])
        numbers = self._rows[rows].tolist()
        found = torch.empty(len(numbers), max(0, stop - start), pin_memory=self._pins)
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


def take_rows(vectors: torch.Tensor | StoredVectors, rows: torch.Tensor) -> torch.Tensor | StoredVectors:
    """Some rows of vectors; of stored ones, without reading them."""
    return vectors.take(rows) if isinstance(vectors, StoredVectors) else vectors[rows]


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
