"""Pickles of weights: files of `torch.save` before 1.6, storages in bytes, and pickles of arrays alone."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from .foreign import BIG_ENDIAN, refusal
from .placeholder import Placeholder
from .rebuild import STORAGES, Budget, Storage
from .unpickler import unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


@dataclass
class Source:
    """Bytes that are not trusted.

    Args:
        stream (`BinaryIO`): To read and to seek in.
        size (`int`): Number of bytes.
        storage (`torch.UntypedStorage`): The same bytes, in memory or mapped from a file.
        budget ([`Budget`]): What reading them may cost.
    """

    stream: BinaryIO
    size: int
    storage: torch.UntypedStorage
    budget: Budget

    @classmethod
    def of_bytes(cls, data: bytes, budget: Budget) -> Source:
        """Bytes within those of another source, at whose cost they are."""
        budget.take(2 * len(data))
        return cls(io.BytesIO(data), len(data), storage_of(data), budget)


def storage_of(data: bytes) -> torch.UntypedStorage:
    """A copy of bytes as a storage."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)


def storage_name(name: Any) -> tuple[str, str, int]:
    """Type, key and number of values of a storage, from its persistent id; `ValueError` when it is none."""
    if not isinstance(name, tuple) or name[:1] != ("storage",) or len(name) < 5:
        raise ValueError("a persistent id of no storage")
    kind, key, _, numel = name[1:5]
    known = isinstance(kind, Placeholder) and kind.module in ("torch", "torch.storage") and kind.name in STORAGES
    if not known or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError("a persistent id of an unknown storage")
    return kind.name, key, numel


def read_pickle(source: Source) -> Any:
    """A file of `torch.save` before 1.6, which is several pickles and then the storages; or a pickle alone.

    Raises:
        ValueError: bytes are missing or exceed a bound; other errors where they mean nothing.
    """
    stream, budget = source.stream, source.budget
    stream.seek(0)
    value = unpickle(stream, budget, load_bytes=lambda data: _Legacy(Source.of_bytes(data, budget)).read())
    if not _is_magic(value):
        if stream.read(1):
            raise ValueError("more follows the first pickle")
        return value
    return _Legacy(source).read()


def _is_magic(value: Any) -> bool:
    return type(value) is int and value == LEGACY_MAGIC


class _Legacy:
    def __init__(self, source: Source):
        self.source = source
        self.storages: dict[str, Storage] = {}
        self.bytes = 0

    def read(self) -> Any:
        stream, budget = self.source.stream, self.source.budget
        stream.seek(0)
        if not _is_magic(unpickle(stream, budget)) or unpickle(stream, budget) != LEGACY_PROTOCOL:
            raise ValueError("an unknown protocol")
        system = unpickle(stream, budget)
        if not isinstance(system, dict) or system.get("little_endian") is False:
            raise refusal("the big-endian file of another machine", BIG_ENDIAN)
        value = unpickle(stream, budget, self.persistent_load)
        # Storages follow in the order of this list, each behind its number of values.
        for key in unpickle(stream, budget):
            target = self.storages.pop(key)
            (numel,) = struct.unpack("<q", stream.read(8))
            start, length = stream.tell(), target.untyped.nbytes()
            if numel * target.dtype.itemsize != length or start + length > self.source.size:
                raise ValueError("a storage of another size")
            if length:
                target.untyped.copy_(self.source.storage[start : start + length])
            stream.seek(start + length)
        if self.storages:
            raise ValueError("a storage is missing")
        return value

    def persistent_load(self, name: Any) -> Any:
        if isinstance(name, tuple) and name[:1] == ("module",) and len(name) > 1:
            # A class, beside its source.
            return name[1]
        kind, key, numel = storage_name(name)
        if key not in self.storages:
            length = numel * STORAGES[kind].itemsize
            self.bytes += length
            if self.bytes > self.source.size:
                raise ValueError("storages that are larger than the file")
            self.storages[key] = Storage("torch", kind, untyped=torch.UntypedStorage(length))
        storage, view = self.storages[key], name[5] if len(name) > 5 else None
        if view is None:
            return storage
        _, offset, length = view
        start, end = (number * storage.dtype.itemsize for number in (offset, offset + length))
        if not 0 <= start <= end <= storage.untyped.nbytes():
            raise ValueError("a view beyond its storage")
        return Storage("torch", kind, untyped=storage.untyped[start:end])
