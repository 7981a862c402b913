"""What a file of weights holds, decided by its bytes; nothing in it is imported or called.

docs/reading_files.md tells what is read, what becomes a placeholder, and which bounds there are.
"""

from __future__ import annotations

import io
import math
import struct
import textwrap
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...files import check_regular
from ...hub.snapshot import some_of
from . import foreign
from .placeholder import Placeholder
from .rebuild import ARRAYS, STORAGES, Budget, Storage
from .unpickler import unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# Every member of an archive takes time and memory by its entry alone.
DIRECTORY_BYTES = 2**23
# What compression may save of members that together are larger than `rebuild.SLACK`.
INFLATION = 20
HEADER_BYTES = 100_000_000


class Refused(ValueError):
    """A whole sentence on a good file that is not read."""


def read_archive(file: Path, where: str) -> Any:
    """What a file of weights holds.

    Args:
        file (`Path`): safetensors, a file of `torch.save` of any version, `.npz`, the `.zip` of stable-baselines, or a
            pickle of arrays; whatever its suffix is.
        where (`str`): What messages call it.

    Returns:
        `Any`: nested dictionaries, lists and tuples of tensors on the CPU, numbers, strings, bytes, `None`, and a
            [`Placeholder`] for everything else. Tensors may be mapped from the file: it has to stay as it is.

    Raises:
        ValueError: the file is missing, damaged, exceeds a bound or is of another kind; one line says which, and for
            other kinds how to convert it.
    """
    if file.is_dir():
        raise ValueError(f"{where}: {foreign.foreign_folder(file)}")
    if not file.exists():
        raise ValueError(f"{where}: expected a file of weights, found no such file.")
    check_regular(file, "weights")
    kind = "PyTorch file of weights"
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            head = stream.read(1024)
            stream.seek(max(0, size - 8))
            tail = stream.read(8)
            if _is_safetensors(head, size, file.suffix):
                kind = "safetensors file"
                return load_file(file)
            if size == 0:
                raise EOFError("it is empty")
            return _Reader(stream, size, torch.UntypedStorage.from_file(str(file), False, size)).read(head, tail)
    except Refused as error:
        raise ValueError(f"{where}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{where} asks for more memory than there is; expected a file of weights.") from error
    except (SafetensorError, Exception) as error:  # Damaged bytes raise whatever they happen to mean.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = "".join(c if c.isprintable() else " " for c in str(error)) or type(error).__name__
        reason = textwrap.shorten(reason, 160, placeholder=" …")
        raise ValueError(f"{where} is no complete {kind} ({reason}); remove it, or copy it again.") from error


def _is_safetensors(head: bytes, size: int, suffix: str) -> bool:
    """A length and a JSON object begin it; a length that no header has is believed where the suffix says so."""
    if suffix == ".safetensors" and not head.startswith(b"PK"):
        return foreign.foreign_text(head) is None or head[8:9] == b"{"
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= HEADER_BYTES


class _Reader:
    """Reads what begins a stream of bytes, which `storage` has in memory or mapped from a file."""

    def __init__(self, stream: BinaryIO, size: int, storage: torch.UntypedStorage, budget: Budget | None = None):
        self.stream, self.size, self.storage = stream, size, storage
        self.budget = budget or Budget(size)

    def read(self, head: bytes, tail: bytes) -> Any:
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return self.zip()
        if error := foreign.foreign_file(head, tail, self.size):
            raise Refused(error)
        if head[0] == 0x80:
            return self.pickle(self.load_bytes)
        if error := foreign.foreign_text(head):
            # Pickles of protocol 0 are texts.
            if head[:1] in b"(cd]}l" and tail.endswith(b"."):
                return self.pickle(self.load_bytes)
            raise Refused(error)
        if head[:1] in b"(]}" and tail.endswith(b"."):
            return self.pickle(self.load_bytes)
        raise Refused(
            f"expected weights (safetensors, a file of torch.save, .npz), found another kind of file, which begins "
            f"{head[:8].hex(' ')}; {foreign.SAVE}."
        )

    # Pickles

    def load_bytes(self, data: bytes) -> Any:
        """The storage that a pickled tensor has in a file of torch.save of its own."""
        self.budget.take(len(data))
        inner = _Reader(io.BytesIO(data), len(data), _storage_of(data), self.budget)
        return inner.pickle()

    def pickle(self, load_bytes: Any = None) -> Any:
        """A file of torch.save before 1.6, which is several pickles and the storages; or a pickle alone."""
        self.stream.seek(0)
        value = unpickle(self.stream, self.budget, load_bytes=load_bytes)
        if value != LEGACY_MAGIC or type(value) is not int:
            if self.stream.read(1):
                raise ValueError("more follows the first pickle")
            return value
        if unpickle(self.stream, self.budget) != LEGACY_PROTOCOL:
            raise ValueError("an unknown protocol")
        system = unpickle(self.stream, self.budget)
        if not isinstance(system, dict) or system.get("little_endian") is False:
            raise Refused(foreign.refusal("the big-endian file of another machine", foreign.BIG_ENDIAN))
        storages: dict[str, Storage] = {}
        value = unpickle(self.stream, self.budget, lambda name: self.legacy_storage(storages, name))
        for key in unpickle(self.stream, self.budget):
            target = storages.pop(key)
            (numel,) = struct.unpack("<q", self.stream.read(8))
            start, length = self.stream.tell(), target.untyped.nbytes()
            if numel * target.dtype.itemsize != length or start + length > self.size:
                raise ValueError("a storage of another size")
            if length:
                target.untyped.copy_(self.storage[start : start + length])
            self.stream.seek(start + length)
        if storages:
            raise ValueError("a storage is missing")
        return value

    def legacy_storage(self, storages: dict[str, Storage], name: Any) -> Any:
        if isinstance(name, tuple) and name[:1] == ("module",) and len(name) > 1:
            # A class, beside its source.
            return name[1]
        kind, key, numel = _storage_name(name)
        view = name[5] if len(name) > 5 else None
        if key not in storages:
            length = numel * STORAGES[kind].itemsize
            if length > self.size or sum(s.untyped.nbytes() for s in storages.values()) + length > self.size:
                raise ValueError("storages that are larger than the file")
            storages[key] = Storage("torch", kind, untyped=torch.UntypedStorage(length))
        if view is None:
            return storages[key]
        _, offset, length = view
        width, untyped = storages[key].dtype.itemsize, storages[key].untyped
        if not 0 <= offset * width <= (offset + length) * width <= untyped.nbytes():
            raise ValueError("a view beyond its storage")
        return Storage("torch", kind, untyped=untyped[offset * width : (offset + length) * width])

    # Archives

    def zip(self) -> Any:
        self.check_directory()
        with zipfile.ZipFile(self.stream) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
            self.archive, self.end = archive, archive.start_dir
            if min((info.header_offset for info in self.members.values()), default=0) != 0:
                raise ValueError("other bytes before the archive")
            if error := foreign.foreign_zip(self.members):
                raise Refused(error)
            pickles = [name for name in self.members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) == 1:
                return self.torch_archive(pickles[0].removesuffix("data.pkl"))
            if "policy.pth" in self.members:
                # stable-baselines keeps the optimiser in a file of its own.
                data = self.member("policy.pth")
                return _Reader(io.BytesIO(data), len(data), _storage_of(data), self.budget).read(
                    data[:1024], data[-8:]
                )
            if self.members and all(name.endswith(".npy") for name in self.members):
                return {name.removesuffix(".npy"): self.npy(name) for name in self.members}
            found = some_of(self.members) if self.members else "nothing"
            raise Refused(f"expected weights, found a zip archive of {found}; unzip it.")

    def check_directory(self) -> None:
        """Refuse a list of members so long that reading it would take long."""
        start = max(0, self.size - 65_557)
        self.stream.seek(start)
        tail = self.stream.read(65_557)
        end = tail.rfind(b"PK\x05\x06")
        if end < 0:
            raise ValueError("the end of the archive is missing")
        entries, length = struct.unpack("<HI", tail[end + 10 : end + 16])
        if length == 0xFFFFFFFF or entries == 0xFFFF:
            (place,) = struct.unpack("<Q", tail[end - 12 : end - 4])
            self.stream.seek(place)
            (length,) = struct.unpack("<Q", self.stream.read(56)[40:48])
        if length > DIRECTORY_BYTES:
            raise ValueError(f"a list of members of {length:,} bytes")

    def torch_archive(self, prefix: str) -> Any:
        if f"{prefix}byteorder" in self.members and self.member(f"{prefix}byteorder") != b"little":
            raise Refused(foreign.refusal("the big-endian file of another machine", foreign.BIG_ENDIAN))
        storages: dict[str, Storage] = {}

        def persistent_load(name: Any) -> Storage:
            kind, key, numel = _storage_name(name)
            if key not in storages:
                untyped = self.member_storage(f"{prefix}data/{key}")
                if numel * STORAGES[kind].itemsize > untyped.nbytes():
                    raise ValueError("a storage that is larger than its member")
                storages[key] = Storage("torch", kind, untyped=untyped)
            return storages[key]

        return unpickle(io.BytesIO(self.member(f"{prefix}data.pkl")), self.budget, persistent_load, self.load_bytes)

    def span(self, name: str) -> tuple[int, int]:
        """Where the bytes of a stored member begin and end; what its checksum says is not checked, as in torch."""
        info = self.members[name]
        self.stream.seek(info.header_offset)
        header = self.stream.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"no member {name[:80]!r} at its place")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > self.end:
            raise ValueError(f"the member {name[:80]!r} beyond the archive")
        return start, start + info.file_size

    def member(self, name: str) -> bytes:
        """The bytes of a member, inflated where it is compressed."""
        info = self.members[name]
        if info.flag_bits & 1:
            raise Refused("expected weights, found an encrypted archive; unzip it with its password.")
        if info.compress_type == zipfile.ZIP_STORED:
            start, end = self.span(name)
            self.budget.take(end - start)
            self.stream.seek(start)
            return self.stream.read(end - start)
        self.inflated = getattr(self, "inflated", 0) + info.file_size
        if self.inflated > INFLATION * self.size + 2**26:
            raise ValueError(f"members that inflate to {self.inflated:,} bytes")
        self.budget.take(info.file_size)
        with self.archive.open(info) as stream:
            data = stream.read(info.file_size)
        if len(data) != info.file_size:
            raise ValueError(f"the member {name[:80]!r} is cut off")
        return data

    def member_storage(self, name: str) -> torch.UntypedStorage:
        if self.members[name].compress_type != zipfile.ZIP_STORED or self.members[name].flag_bits & 1:
            return _storage_of(self.member(name))
        start, end = self.span(name)
        return self.storage[start:end] if end > start else torch.UntypedStorage(0)

    def npy(self, name: str) -> torch.Tensor | Placeholder:
        """An array of numbers as a tensor; what it would have to be unpickled for stays where it is."""
        data = self.member(name)
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject or dtype.str[1:] not in ARRAYS:
            return Placeholder("numpy", "ndarray", (shape, str(dtype)))
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"the array {name[:80]!r} of another size than its bytes")
        values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C", copy=True))


def _storage_of(data: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)


def _storage_name(name: Any) -> tuple[str, str, int]:
    """Type, key and number of values of a persistent id."""
    if not isinstance(name, tuple) or name[:1] != ("storage",) or len(name) < 5:
        raise ValueError("a persistent id of no storage")
    kind, key, _, numel = name[1:5]
    known = isinstance(kind, Placeholder) and kind.module in ("torch", "torch.storage") and kind.name in STORAGES
    if not known or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError("a persistent id of an unknown storage")
    return kind.name, key, numel
