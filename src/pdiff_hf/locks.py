"""One program at a time writes to a folder; the next one is told who does."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .os_errors import writing

try:
    import fcntl
except ImportError:
    # Windows, where a pipeline can be loaded; nothing else.
    fcntl = None

# Some network file systems have no locks. There, what the file says of its holder has to do.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
LOCK_FILE = ".lock"
# Lock files that `locked` holds, and which thread may enter them again.
_held: dict[Path, int] = {}


class FolderLock:
    """Keeps other programs and threads off a folder until [`~FolderLock.release`], or until this process is dead.

    Args:
        folder (`str` or `Path`): Made when it does not exist; if it is still empty in the end, it is removed again.
        beside (`bool`, *optional*, defaults to `False`): Whether the lock file is beside the folder, which gets its
            name only when it is complete, or is replaced as a whole.

    Raises:
        ValueError: somebody else is writing to the folder.
    """

    def __init__(self, folder: str | Path, beside: bool = False):
        self.folder, self.file = Path(folder), lock_file(folder, beside)
        place = self.file.parent
        if place.exists() and not place.is_dir():
            raise ValueError(f"expected a folder, {place} is a file.")
        self._made = [path for path in (place, *place.parents) if not path.exists()]
        # Whoever lets go may take the file, or the empty folder, away at this very moment.
        for _ in range(1000):
            with suppress(FileNotFoundError), writing(folder, self.file):
                place.mkdir(parents=True, exist_ok=True)
                if self._take():
                    return
        raise ValueError(f"{folder} is changed by others all the time; choose another folder.")

    def _take(self) -> bool:
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            advice = self._refuse_living()
            # The holder before has taken its file away: what has been opened may not be what others will open.
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(self.file)):
                raise FileNotFoundError
            own = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            own["command"] = _command()
            # Without room for it, others are only not told whose lock it is.
            with suppress(OSError):
                os.truncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(own).encode(), 0)
            if advice is not None:
                # Of those that have found no living holder at the same time, the last one stays.
                time.sleep(0.2)
                if (holder := _read_holder(self._descriptor)) != own:
                    raise ValueError(_refusal(self.folder, holder, advice))
        except BaseException:
            os.close(self._descriptor)
            raise
        return True

    def _refuse_living(self) -> str | None:
        """Raise `ValueError` when the lock is held; without locks, returns what else to do about a holder."""
        try:
            if fcntl is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
        except BlockingIOError:
            raise ValueError(_refusal(self.folder, _read_holder(self._descriptor))) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        import psutil

        holder, advice = _read_holder(self._descriptor), f"; if that is gone, delete {self.file}"
        if holder and not (holder["host"] == socket.gethostname() and not psutil.pid_exists(holder["pid"])):
            raise ValueError(_refusal(self.folder, holder, advice))
        return advice

    def release(self) -> None:
        """Let others write again."""
        # While it is held: afterwards it may be another's.
        self.file.unlink(missing_ok=True)
        os.close(self._descriptor)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def lock_file(folder: str | Path, beside: bool = False) -> Path:
    """The lock file of a folder, the same for all paths that lead there."""
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.lock") if beside else folder / LOCK_FILE


@contextmanager
def locked(folder: str | Path, beside: bool = False) -> Iterator[None]:
    """Hold the [`FolderLock`] of a folder. What the block calls may enter the same lock."""
    file = lock_file(folder, beside)
    if _held.get(file) == threading.get_ident():
        yield
        return
    lock = FolderLock(folder, beside)
    _held[file] = threading.get_ident()
    try:
        yield
    finally:
        del _held[file]
        lock.release()


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    types = {"pid": int, "host": str, "since": str, "command": str}
    is_whole = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in types.items())
    return holder if is_whole else {}


def _refusal(folder: Path, holder: dict[str, Any], advice: str = "") -> str:
    who = "another program"
    if holder:
        who = f"`{holder['command']}` (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    return f"{folder} is being written to by {who}; wait for it or end it, or choose another folder{advice}."


def _command() -> str:
    name = Path(sys.argv[0])
    name = name.parent.name if name.name == "__main__.py" else name.name
    return textwrap.shorten(shlex.join([name, *sys.argv[1:]]), 200, placeholder=" …")
