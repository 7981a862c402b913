"""A disk that is full from the n-th write on, whichever library writes."""

import builtins
import errno
import io
import os
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

FULL = os.strerror(errno.ENOSPC)


class FullDisk:
    """Counts writes. From the n-th one on they fail as the library that makes them fails; new names fail once."""

    def __init__(self, first):
        self.first, self.count, self.failed = first, 0, 0

    def fails(self, once):
        self.count += 1
        fails = self.count == self.first if once else self.count >= self.first
        self.failed += fails
        return fails


@contextmanager
def full_disk(first):
    disk = FullDisk(first)

    def failing(module, name, error, is_write=lambda *args, **kwargs: True, once=False):
        function = getattr(module, name)

        def call(*args, **kwargs):
            if is_write(*args, **kwargs) and disk.fails(once):
                raise error(args)
            return function(*args, **kwargs)

        patch.setattr(module, name, call)

    def in_python(args):
        return OSError(errno.ENOSPC, FULL, str(args[0]))

    def in_arrow(args):
        return OSError(errno.ENOSPC, f"Error writing bytes to file. Detail: [errno {errno.ENOSPC}] {FULL}")

    def opens_for_writing(file, mode="r", *_, **__):
        return not isinstance(file, int) and any(letter in mode for letter in "wax+") and "/dev/" not in str(file)

    rust = SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})")
    in_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    in_torch.__context__ = OSError(errno.ENOSPC, FULL)
    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            failing(module, "open", in_python, opens_for_writing)
        for name in ("replace", "rename", "mkdir"):
            failing(os, name, in_python, once=True)
        failing(os, "open", in_python, lambda path, flags, *_, **__: flags & os.O_CREAT)
        failing(pq.ParquetWriter, "write_table", in_arrow)
        failing(safetensors.torch, "serialize_file", lambda args: rust)
        failing(torch, "save", lambda args: in_torch)
        yield disk


def leftovers(folder):
    """What no program should leave behind."""
    ends, starts = (".partial", ".lock", ".old"), (".append", ".tmp", "tmp")
    return [path for path in folder.rglob("*") if path.name.endswith(ends) or path.name.startswith(starts)]
