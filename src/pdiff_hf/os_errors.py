"""Errors of the operating system, also where a library hides them, in one line each: what, why, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Nobody has named a wrong place: there is no room, or the machine has a fault. The same command may succeed later.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAULTS = (*FULL, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOLCK)
ADVICE = {
    **dict.fromkeys(FULL, "make room and start the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions or choose another place"),
    errno.EROFS: "choose a place that can be written to",
    errno.EXDEV: "choose a folder that lies on one file system",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n) and start again"),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOLCK), "check the disk or its connection, and start again"),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), "end other programs and start again"),
}
# Variables that move what libraries keep for themselves, and where it is without them.
CACHES = {
    "HF_HUB_CACHE": "",
    "HF_DATASETS_CACHE": "",
    "HF_HOME": "~/.cache/huggingface",
    "TORCH_HOME": "~/.cache/torch",
    "MPLCONFIGDIR": "~/.config/matplotlib",
}
# How Rust, Arrow and Python spell the number of an error, and how torch says that a write has failed, without one.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[?\berrno (\d+)", re.IGNORECASE)
_TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs|iostream error")
# Errors of our own code, which an error of the system has led to at most.
_BUGS = (ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError, ArithmeticError)


def as_os_error(error: BaseException, path: str | Path | None = None) -> OSError | None:
    """The `OSError` that an exception is or hides, with the file name it lacks from `path`; `None` for all others."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(error, OSError):
        found = error
    elif isinstance(error, _BUGS):
        return None
    elif (number := next((m for m in map(_NUMBER.search, map(str, chain)) if m), None)) is not None:
        code = int(number[1] or number[2])
        found = OSError(code, os.strerror(code))
    elif isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        # Closing the file, torch hides what writing to it has raised.
        known, code = error.__context__, errno.ENOSPC
        if isinstance(known, OSError) and known.errno is not None:
            code = known.errno
        elif path is None or _has_room(Path(path)):
            code = errno.EIO
        found = OSError(code, os.strerror(code))
    else:
        return None
    if found.errno is not None and _NUMBER.search(str(found.strerror)):
        # Arrow's own sentence.
        found.strerror = os.strerror(found.errno)
    if found.errno in FULL and found.filename2 is not None:
        # Of a copy, it is the target that has no room.
        found.filename = found.filename2
    if found.errno is not None and found.filename is None and path is not None:
        found.filename = str(path)
    return found


def _has_room(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free > 2**20


@contextmanager
def writing(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Give what goes wrong in the block while files are written as an `OSError` that names `path` or a file in it.

    What is written to `temporary` first is named as it would have been in `path`.
    """
    try:
        yield
    except Exception as error:
        if (found := as_os_error(error, path)) is None:
            raise
        name, begun = str(found.filename), str(temporary)
        if temporary is not None and (name == begun or name.startswith(f"{begun}{os.sep}")):
            found.filename = f"{path}{name[len(begun) :]}"
            # Of a rename, the other name is the same place.
            del found.filename2
        if found is error:
            raise
        raise found from error


def exit_code(error: BaseException | None) -> int:
    """The exit code for an error: 1 when there is no room or the machine has a fault, else 2."""
    return 1 if isinstance(error, OSError) and error.errno in FAULTS else 2


def describe(error: OSError) -> str:
    """What, why and what to do, in one line for people."""
    reason = error.strerror if error.errno is not None and error.strerror else str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    advice = ADVICE.get(error.errno, "check the path") if name or error.errno in ADVICE else ""
    if name and error.errno not in (*FAULTS, errno.ENAMETOOLONG) and (cache := _cache_of(name)):
        advice = f"set {cache} to a folder that can be written to"
    elif name and error.errno in FULL and (cache := _cache_of(name)):
        advice = f"make room or set {cache} to another place, and start the same command again"
    if "temporary directory" in reason:
        advice = "set TMPDIR to a folder that can be written to"
    # A name is one word, which would be left out as a whole.
    shown = name if len(name) <= 500 else f"{name[:200]}…{name[-200:]}"
    text = textwrap.shorten(f"{f'{shown}: ' if shown else ''}{reason}", 1000, placeholder=" …").rstrip(".;")
    return f"{text}{f'; {advice}' if advice else ''}."


def _cache_of(name: str) -> str | None:
    """The variable that says where a file of a library's own lies."""
    for variable, default in CACHES.items():
        folder = os.environ.get(variable) or os.path.expanduser(default)
        if folder and Path(folder) in Path(name).parents:
            return variable
    return None
