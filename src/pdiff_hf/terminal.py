"""Standard streams that take whatever is printed: in any encoding, to a file, a pipe that ends early, or nothing."""

from __future__ import annotations

import codecs
import errno
import io
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

# What is written where an encoding lacks a character; any other becomes its escape, as on Python's own stderr.
STAND_INS = {
    "→": "->",
    "←": "<-",
    "↔": "<->",
    "−": "-",
    "–": "-",
    "—": "-",
    "×": "x",
    "·": ".",
    "…": "...",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "²": "^2",
    "•": "*",
    "●": "*",
    "’": "'",
    "\xa0": " ",
}
# What a shell reports of a program whose pipe was closed: 128 + SIGPIPE.
BROKEN_PIPE = 141
# A signal that a launcher passes on arrives twice within this time; a later one is another.
SECONDS_OF_COPIES = 3.0


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escapes = (STAND_INS.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in characters)
    return "".join(escapes), error.end


codecs.register_error("pdiff_hf.stand_in", _stand_in)


class _LastingFile(io.FileIO):
    """An open file whose first error is kept; from then on everything is taken, and lost."""

    error: OSError | None = None

    def write(self, data) -> int:
        """Write all of `data`, however slow its reader is."""
        rest = memoryview(data).cast("B")
        try:
            while self.error is None and len(rest):
                if (written := super().write(rest)) is None:
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Give the program streams that never raise; one that could not be written to ends it with a code at last.

    A command's work is in files: what it says of them on the way must not end it. For `main` of a program.
    """
    # In this order, each takes the number of the one that was closed: else the next file that is opened would be the
    # standard output to whatever is written in C.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    error = getattr(_file(sys.stdout), "error", None)
    if error is None:
        return
    if error.errno == errno.EPIPE:
        sys.exit(BROKEN_PIPE)
    print(f"Error: the command is done, but its output could not be written: {error.strerror}.", file=sys.stderr)
    sys.exit(1)


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that what was begun is taken away again. For `main` of a program.

    Only the main thread can; in others, signals stay as they are. Copies of the signal, as a launcher sends them, do
    not interrupt the cleaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        is_copy, last = time.monotonic() - last < SECONDS_OF_COPIES, time.monotonic()
        # Says nothing: it may have come in the middle of a write to the same stream.
        if not is_copy:
            sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if last > -math.inf:
            print("Error: ended by SIGTERM; what was complete before is kept.", file=sys.stderr)


def _file(stream: TextIO) -> Any:
    """What is under the buffer of a stream, if it has one: PYTHONUNBUFFERED leaves it out."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _lasting(stream: TextIO | None) -> TextIO:
    """A stream for the same file; where there is none, one for nothing. Others than Python's own stay."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="pdiff_hf.stand_in")
    # Not of a console on Windows, nor what captures the output of a test.
    if type(_file(stream)) is not io.FileIO or stream.fileno() > 2:
        return stream
    stream.flush()
    file = _LastingFile(stream.fileno(), "wb", closefd=False)
    buffer = file if stream.buffer is _file(stream) else io.BufferedWriter(file)
    how = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
    return io.TextIOWrapper(buffer, write_through=stream.write_through, **how)
