"""Small helpers for files that are either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .locks import locked
from .os_errors import writing


@contextmanager
def errors_of(name: Any, *kinds: type[Exception], said: str = "") -> Iterator[None]:
    """Give every `ValueError` of the block, and errors of `kinds` as such, in one line that begins with `name`.

    Errors that are not just a `ValueError` have `said` behind the name, unless the operating system has raised them:
    a file that may not be read is not a damaged one.
    """
    try:
        yield
    except (ValueError, *kinds) as error:
        reason = textwrap.shorten(str(error), 1000, placeholder=" …") or type(error).__name__
        if type(error) is ValueError or (isinstance(error, OSError) and error.errno is not None):
            said = ""
        raise ValueError(f"{name}{said}: {reason}") from error


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
    if not os.path.lexists(Path(folder) / file):
        raise ValueError(f"expected {what} at {folder}, found no {file} there.")
    check_regular(Path(folder) / file)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it on success and removed on failure.

    Raises:
        OSError: as [`writing`].
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def partial_folder(path: str | Path) -> Path:
    """Where a folder is written until it is complete: beside the place it gets, on the same file system."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` that gets this name on success and is removed on failure.

    `path` is new or an empty folder; with `replace`, what is there makes room on success. One that was cut off has
    left a temporary folder, which is removed as well.

    Raises:
        ValueError: another program is writing to `path`, or it is a mount point.
        OSError: as [`writing`].
    """
    partial = partial_folder(path)
    final, old = Path(os.path.realpath(path)), partial.with_suffix(".old")
    if os.path.ismount(final):
        raise ValueError(f"expected a folder that can be replaced, {path} is a mount point; choose one inside it.")
    with locked(path, beside=True), writing(path, partial):
        # The name was taken away, and then came the end.
        if replace and old.exists() and not final.exists():
            old.rename(final)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if replace and final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            try:
                partial.rename(final)
            except BaseException:
                if replace and old.exists():
                    old.rename(final)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(folder: str | Path, merge: bool = False) -> Iterator[Path]:
    """Give an empty folder, whose entries replace those of the same names in `folder` once all are written.

    With `merge`, other files in sub-folders of the same names stay.

    Raises:
        OSError: as [`writing`].
    """
    folder = Path(folder)
    partial = folder / ".partial"
    with writing(folder, partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            new: list[Path] = []
            try:
                for entry in sorted(partial.rglob("*") if merge else partial.iterdir()):
                    target = folder / entry.relative_to(partial)
                    if not target.exists():
                        new.append(target)
                    if merge and entry.is_dir():
                        target.mkdir(exist_ok=True)
                        continue
                    if target.is_dir():
                        shutil.rmtree(target)
                    entry.replace(target)
            except BaseException:
                for target in reversed(new):
                    _remove(target)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def restoring(file: Path) -> Iterator[None]:
    """Give a file back what it held when the block fails."""
    before = file.with_name(f".{file.name}.old")
    before.unlink(missing_ok=True)
    if file.exists():
        link_or_copy(file, before)
    try:
        yield
    except BaseException:
        if before.exists():
            os.replace(before, file)
        else:
            file.unlink(missing_ok=True)
        raise
    finally:
        before.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed in the end; raises `OSError` as [`writing`]."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, writing(folder):
        yield Path(folder)


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
    with errors_of(f"{path} is not valid JSON", OSError, RecursionError):
        return parse_json(path.read_text(encoding="utf-8"))


def read_object(path: str | Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON file that holds keys and values; `ValueError` for others, and for a value of none of its `kinds`."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, found {values!r:.200}.")
    for key, kind in kinds.items():
        if key in values and not isinstance(values[key], kind):
            raise ValueError(f"{path}: expected {key!r} of another type, found {values[key]!r:.200}.")
    return values


def parse_json(text: str) -> Any:
    """The value of a JSON text; `ValueError` when it is not valid, or has a key twice in one object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"key {key!r} is there twice; keep one of them.")
            values[key] = value
        return values

    return json.loads(text, object_pairs_hook=unique)


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
