"""How much memory a process has needed, and how it gives back what it needs no more."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Peak of this process's resident memory up to now, in bytes.

    On Linux not by `ru_maxrss`, which a new program takes over from the process that has started it.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 2**10
    # Kilobytes, on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def return_large_blocks(size: int = 2**22) -> None:
    """Let freed blocks of `size` bytes or more go back to the system, with glibc.

    By default, once blocks of up to 32 MB have been freed, the next ones come from the heap, where what lies between
    them keeps them for ever: a few hundred MB of a training whose tensors are a few MB each (`M_MMAP_THRESHOLD` in
    mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, size)
