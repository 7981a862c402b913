"""Small helpers for files that are either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def errors_of(name: Any, *kinds: type[Exception], said: str = "") -> Iterator[None]:
    """Give every `ValueError` of the block, and errors of `kinds` as such, in one line that begins with `name`.

    Errors that are not just a `ValueError` have `said` behind the name.
    """
    try:
        yield
    except (ValueError, *kinds) as error:
        reason = textwrap.shorten(str(error), 1000, placeholder=" …") or type(error).__name__
        raise ValueError(f"{name}{'' if type(error) is ValueError else said}: {reason}") from error


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it on success and removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` that gets this name on success and is removed on failure.

    `path` is new or an empty folder; with `replace`, what is there makes room on success.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# What a file may be that opens, and waits for ever or reads something else.
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


def check_regular(path: str | Path, what: str = "a file") -> Path:
    """`path`, when it is a regular file or a link to one; `ValueError` says what else it is."""
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        found = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "none"
    else:
        if stat.S_ISREG(mode):
            return path
        found = KINDS.get(stat.S_IFMT(mode), "a device")
    raise ValueError(f"expected {what} at {path}, found {found}.")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; `ValueError` for a NaN or an infinity, which JSON does not know."""
    with errors_of(f"{path}: expected finite numbers"):
        text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; `ValueError` when it is missing or is not JSON."""
    path = check_regular(path, "a JSON file")
    with errors_of(f"{path} is not valid JSON", RecursionError):
        return json.loads(path.read_text(encoding="utf-8"))


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes; `ValueError` when it is no regular file."""
    with open(check_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
