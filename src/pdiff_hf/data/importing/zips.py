"""Weights in zip archives: files of `torch.save` since 1.6, of `numpy.savez`, and of stable-baselines."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import Any

import numpy as np
import torch

from ...hub.snapshot import some_of
from .foreign import BIG_ENDIAN, foreign_zip, refusal
from .pickles import Source, read_pickle, storage_name, storage_of
from .placeholder import Placeholder
from .rebuild import ALONE, ARRAYS, SLACK, STORAGES, Storage, Unreadable
from .unpickler import unpickle

# Every member takes time and memory by its entry alone.
DIRECTORY_BYTES = 2**23

# What compression may save of members that together are larger than `SLACK`.
INFLATION = 20

POLICY = "policy.pth"


class _Directory:
    """A stream of which no more is read at once than a list of members may have."""

    def __init__(self, source: Source):
        self.stream, self.limit = source.stream, DIRECTORY_BYTES
        self.seek, self.tell, self.seekable = self.stream.seek, self.stream.tell, self.stream.seekable

    def read(self, size: int = -1) -> bytes:
        if self.limit is None:
            return self.stream.read(size)
        if size > self.limit:
            raise Unreadable(f"an archive whose list of members has {size:,} bytes; {ALONE}")
        return self.stream.read(self.limit if size is None or size < 0 else size)


class ZipArchive:
    """A zip archive whose members are looked up by name, and never written anywhere.

    Args:
        source ([`Source`]): The archive.
        nested (`bool`, *optional*, defaults to `False`): Whether it is a member of another one.

    Raises:
        ValueError: its list of members is missing, cut off or longer than that of any network.
    """

    def __init__(self, source: Source, nested: bool = False):
        self.source, self.nested, self.inflated = source, nested, 0
        directory = _Directory(source)
        try:
            self.archive = zipfile.ZipFile(directory)
        except zipfile.BadZipFile as error:
            raise ValueError(f"its list of members is missing or damaged: {error}") from error
        directory.limit = None
        self.members = {info.filename: info for info in self.archive.infolist()}
        if self.members and min(info.header_offset for info in self.members.values()) != 0:
            raise ValueError("other bytes are before the archive")

    def read(self) -> Any:
        """What it holds, by the names of its members."""
        if error := foreign_zip(self.members):
            raise error
        pickles = [name for name in self.members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) == 1:
            return self._torch(pickles[0].removesuffix("data.pkl"))
        if POLICY in self.members and not self.nested:
            # stable-baselines keeps the optimiser in a file of its own.
            policy = Source.of_bytes(self._bytes(POLICY), self.source.budget)
            head = policy.stream.read(2)
            return ZipArchive(policy, nested=True).read() if head == b"PK" else read_pickle(policy)
        if self.members and all(name.endswith(".npy") for name in self.members):
            return {name.removesuffix(".npy"): self._array(name) for name in self.members}
        raise Unreadable(f"a zip archive of {some_of(self.members) if self.members else 'nothing'}; unzip it")

    def _torch(self, prefix: str) -> Any:
        if f"{prefix}byteorder" in self.members and self._bytes(f"{prefix}byteorder") != b"little":
            raise refusal("the big-endian file of another machine", BIG_ENDIAN)
        storages: dict[str, Storage] = {}

        def persistent_load(name: Any) -> Storage:
            kind, key, numel = storage_name(name)
            if key not in storages:
                untyped = self._storage(f"{prefix}data/{key}")
                if numel * STORAGES[kind].itemsize > untyped.nbytes():
                    raise ValueError("a storage that is larger than its member")
                storages[key] = Storage("torch", kind, untyped=untyped)
            return storages[key]

        return unpickle(io.BytesIO(self._bytes(f"{prefix}data.pkl")), self.source.budget, persistent_load)

    def _array(self, name: str) -> torch.Tensor | Placeholder:
        """An array of numbers as a tensor; one that would have to be unpickled stays where it is."""
        data = self._bytes(name)
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject or dtype.str[1:] not in ARRAYS:
            return Placeholder("numpy", "ndarray", (shape, str(dtype)))
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"the array {name[:80]!r} has another size than its bytes")
        values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C", copy=True))

    # Members

    def _is_stored(self, info: zipfile.ZipInfo) -> bool:
        if info.flag_bits & 1:
            raise Unreadable("an encrypted archive; unzip it with its password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable("an archive compressed in an unusual way; unzip it")
        return info.compress_type == zipfile.ZIP_STORED

    def _span(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Where a stored member begins and ends; its checksum is not looked at, because torch may leave it out."""
        self.source.stream.seek(info.header_offset)
        header = self.source.stream.read(30)
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if header[:4] != b"PK\x03\x04" or start + info.file_size > self.archive.start_dir:
            raise ValueError(f"the member {info.filename[:80]!r} is not where it should be")
        return start, start + info.file_size

    def _bytes(self, name: str) -> bytes:
        info = self.members[name]
        if self._is_stored(info):
            start, end = self._span(info)
            self.source.budget.take(end - start)
            self.source.stream.seek(start)
            return self.source.stream.read(end - start)
        self.inflated += info.file_size
        if self.inflated > INFLATION * self.source.size + SLACK:
            raise Unreadable(f"an archive that inflates to {self.inflated:,} bytes; unzip it, or {ALONE}")
        self.source.budget.take(info.file_size)
        with self.archive.open(info) as stream:
            data = stream.read(info.file_size)
        if len(data) != info.file_size:
            raise ValueError(f"the member {name[:80]!r} is cut off")
        return data

    def _storage(self, name: str) -> torch.UntypedStorage:
        info = self.members[name]
        if not self._is_stored(info):
            return storage_of(self._bytes(name))
        start, end = self._span(info)
        return self.source.storage[start:end] if end > start else torch.UntypedStorage(0)
