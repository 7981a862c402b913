"""Small helpers for files that are either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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

    Args:
        path (`str` or `Path`): The folder, new or empty.
        replace (`bool`, *optional*, defaults to `False`): What is there makes room on success.
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


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON does not know.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: expected finite numbers: {error}.") from error
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a JSON file at {path}, found none.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
