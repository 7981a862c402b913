"""What a file of weights holds, decided by its bytes; nothing in it is imported or called.

docs/reading_files.md tells what is read, what becomes a placeholder, and which bounds there are.
"""

from __future__ import annotations

import struct
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...files import check_regular
from .foreign import foreign_file, foreign_folder, foreign_text, foreign_value
from .pickles import Source, read_pickle
from .rebuild import ALONE, Budget, Unreadable
from .zips import ZipArchive

# As in safetensors, no header is larger.
HEADER_BYTES = 100_000_000
HEAD_BYTES = 1024
ZIP = (b"PK\x03\x04", b"PK\x05\x06")

# What a file that is damaged was to be; its suffix is asked for nothing else.
KINDS = {".safetensors": "safetensors file", ".npz": "archive of arrays"}


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
        OSError: the file may not be read.
    """
    if not file.exists():
        raise ValueError(f"{where}: expected a file of weights, found no such file.")
    kind = KINDS.get(file.suffix, "PyTorch file of weights")
    try:
        if file.is_dir():
            raise foreign_folder(file)
        check_regular(file, "weights")
        value = _read(file)
        if error := foreign_value(value):
            raise error
        return value
    except Unreadable as error:
        raise ValueError(f"{where}: expected weights, found {_line(error, 600)}.") from error
    except MemoryError as error:
        raise ValueError(f"{where} asks for more memory than there is; {ALONE}.") from error
    except (SafetensorError, Exception) as error:  # Damaged bytes raise whatever they happen to mean.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = "safetensors file" if isinstance(error, SafetensorError) else kind
        raise ValueError(
            f"{where} is no complete {kind} ({_line(error, 160)}); remove it, or copy it again."
        ) from error


def _line(error: Exception, length: int) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error)) or type(error).__name__
    return textwrap.shorten(text, length, placeholder=" …")


def _read(file: Path) -> Any:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, size - 8))
        tail = stream.read(8)
        # The length of a JSON object, and the object.
        safetensors = head[8:9] == b"{"
        if safetensors and struct.unpack("<Q", head[:8])[0] <= HEADER_BYTES:
            return load_file(file)
        if size == 0:
            raise EOFError("it is empty")
        source = Source(stream, size, torch.UntypedStorage.from_file(str(file), False, size), Budget(size))
        if head.startswith(ZIP):
            return ZipArchive(source).read()
        if error := foreign_file(head, tail, size):
            raise error
        # Pickles of protocol 0 are texts, which end with a full stop.
        if head[0] == 0x80 or (head[:1] in b"(cd]}l" and tail.endswith(b".")):
            return read_pickle(source)
        if error := foreign_text(head):
            raise error
        if safetensors or file.suffix == ".safetensors":
            return load_file(file)
        found = f"another kind of file, which begins {head[:8].hex(' ')}"
        raise Unreadable(f"{found}; give one of safetensors, torch.save or numpy.savez")
