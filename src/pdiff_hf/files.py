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


def check_new(folder: str | Path, what: str) -> None:
    """Raise `ValueError` when there is something at `folder` already, where `what` is to be written."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected an empty or new folder for {what}, found that {folder} is a file.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected an empty or new folder for {what}, found that {folder} holds files.")


def check_artefact(folder: str | Path, file: str, what: str) -> None:
    """Raise `ValueError` when there is no `folder`, or not the `file` in it that makes it `what`."""
    if not Path(folder).is_dir():
        raise ValueError(f"expected {what} at {folder}, found no such folder.")
    if not (Path(folder) / file).is_file():
        raise ValueError(f"expected {what} at {folder}, found no {file} there.")


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


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; `ValueError` for a NaN or an infinity, which JSON does not know."""
    with errors_of(f"{path}: expected finite numbers"):
        text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; `ValueError` when it is missing or is not JSON."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a JSON file at {path}, found none.")
    with errors_of(f"{path} is not valid JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
