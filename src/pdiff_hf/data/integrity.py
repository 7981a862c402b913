"""Which shards a parameter dataset has, and whether they are as they were written.

`stats.json` lists the shards with the SHA-256 of each and of its footer; pages of Parquet carry their own checksums.
Whole reads compare the first, parts the second, and every page that is read is compared with its checksum. Datasets
without the list, and shards without checksums, are read as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..files import check_regular, errors_of, read_json, read_object, sha256_file, write_json

STATS = "stats.json"

# Names of the shards that a writer is changing: what `stats.json` says of them holds again when this file is gone.
CHANGING = ".changing.json"

ON_PURPOSE = "if it was changed on purpose, take 'shards' out of stats.json"


def read_stats(path: str | Path) -> dict[str, Any]:
    """What `stats.json` of a folder says; before it was written, that there are no metadata."""
    file = Path(path) / STATS
    if not os.path.lexists(file):
        return {"metadata": {}}
    return {"metadata": {}, **read_object(file, metadata=dict, num_rows=int, unordered_runs=list, conditions=dict)}


def find_shards(path: str | Path) -> list[Path]:
    """The Parquet shards of a dataset folder in order."""
    return sorted((Path(path) / "data").glob("train-*.parquet"))


def some_shards(path: str | Path) -> list[Path]:
    """The [`find_shards`] of a folder; `ValueError` when there are none."""
    if not (found := find_shards(path)):
        raise ValueError(f"expected Parquet shards {Path(path) / 'data' / 'train-*.parquet'}, found none.")
    return found


@contextmanager
def damage_as_error(file: str | Path, said: str = " is damaged") -> Iterator[None]:
    """Give what Arrow says of a file's content in one line; what the system says of the file is no damage."""
    with errors_of(file, pa.ArrowException, OSError, said=said):
        try:
            yield
        except (OSError, MemoryError) as error:
            # Those of Arrow have no number.
            if isinstance(error, OSError) and not error.errno:
                raise
            raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def announce(path: Path, names: Iterable[str]) -> None:
    """Say that shards are about to be changed, so that whoever is stopped meanwhile leaves a dataset that is read."""
    if names := {*names}:
        write_json(path / CHANGING, sorted(names | _announced(path)))


def settle(path: Path) -> None:
    """Say that `stats.json` describes all shards."""
    (path / CHANGING).unlink(missing_ok=True)


def is_settled(path: Path) -> bool:
    """Whether no writer is changing shards, and none was stopped while it was."""
    return not os.path.lexists(path / CHANGING)


def _announced(path: Path) -> set[str]:
    return set() if is_settled(path) else set(read_json(path / CHANGING))


def describe_shard(file: Path, num_rows: int) -> dict[str, Any]:
    """What `stats.json` says of a shard."""
    return {
        "file": file.name,
        "num_rows": num_rows,
        "sha256": sha256_file(file),
        "footer_sha256": hashlib.sha256(_footer(file)).hexdigest(),
    }


def listed_shards(stats: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The shards that a `stats.json` lists by their names; `None` when it lists none, as those of version 0.1 do."""
    if "shards" not in stats:
        return None
    with errors_of(f"{STATS}: malformed 'shards'", KeyError, TypeError, AttributeError):
        return {
            entry["file"]: {key: entry[key] for key in ("num_rows", "sha256", "footer_sha256")}
            for entry in stats["shards"]
        }


def check_names(where: str | Path, names: Sequence[str], listed: Mapping[str, Mapping] | None) -> None:
    """Raise `ValueError` when the shards at a place are not those that its `stats.json` lists."""
    if listed is None:
        return
    if missing := sorted(listed.keys() - set(names)):
        rows = sum(listed[name]["num_rows"] for name in missing)
        raise ValueError(
            f"{where}: expected the shards that stats.json lists, found no {missing[0]}; {len(missing)} of "
            f"{len(listed)} with {rows} rows are missing; restore them, or collect again."
        )
    if foreign := [name for name in names if name not in listed]:
        raise ValueError(
            f"{where}: expected the shards that stats.json lists, found {foreign[0]}, which does not belong to it; "
            f"remove it, or, {ON_PURPOSE}."
        )


def check_set(path: str | Path, files: Sequence[Path]) -> bool:
    """[`check_names`] of a folder's shards `files`; those that a writer is changing may be there or not.

    Returns:
        `bool`: whether `stats.json` lists shards at all.
    """
    path, changing = Path(path), _announced(Path(path))
    if (listed := listed_shards(read_stats(path))) is None:
        return False
    listed = {name: entry for name, entry in listed.items() if name not in changing}
    # Another process may have written some since they were listed here.
    names = [file.name for file in files] + [name for name in listed if (path / "data" / name).exists()]
    names = [name for name in dict.fromkeys(names) if name not in changing]
    for file in files:
        if file.name in names and file.name not in listed and (copied := _copied(file, listed)):
            if not (path / "data" / copied).exists():
                raise ValueError(f"{file} is {copied} under another name; rename it to {copied}.")
            raise ValueError(f"{file} is a copy of {copied}, whose rows would count double; remove it.")
    check_names(path, names, listed)
    return True


def check_all(path: str | Path, files: Sequence[Path]) -> None:
    """[`check_set`] and [`check_content`] of all shards of a folder, before rows are written behind them."""
    check_set(path, files)
    for file in files:
        with damage_as_error(file):
            check_content(file)


def _copied(file: Path, listed: Mapping[str, Mapping]) -> str | None:
    digest = sha256_file(file)
    return next((name for name, entry in listed.items() if entry["sha256"] == digest), None)


def check_content(file: Path) -> None:
    """Raise `OSError` when a shard is not the one that `stats.json` lists; all of it is read, once a process."""
    _compare(file, "sha256", _content_digest)


def check_footer(file: Path) -> None:
    """[`check_content`] of the footer alone, which the checksums of pages leave out."""
    _compare(file, "footer_sha256", lambda path, *_: hashlib.sha256(_footer(path)).hexdigest())


def _compare(file: Path, key: str, digest) -> None:
    # A second time: between the two files, another process may have written both anew.
    for _ in range(2):
        if (entry := _expected(file)) is None:
            return
        stat = os.stat(file)
        found = digest(file, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if found == entry[key]:
            return
    raise OSError(f"expected {key} {entry[key][:12]}…, found {found[:12]}…; restore it from a copy, or, {ON_PURPOSE}.")


def _expected(file: Path) -> Mapping | None:
    folder = file.parent.parent
    if file.name in _announced(folder) or not os.path.lexists(folder / STATS):
        return None
    stat = os.stat(check_regular(folder / STATS, "a JSON file"))
    return (_listed(folder / STATS, stat.st_ino, stat.st_size, stat.st_mtime_ns) or {}).get(file.name)


@lru_cache(maxsize=16)
def _listed(stats: Path, *_: int) -> dict[str, dict[str, Any]] | None:
    return listed_shards(read_json(stats))


@lru_cache(maxsize=2**14)
def _content_digest(file: Path, *_: int) -> str:
    return sha256_file(file)


def _footer(file: Path) -> bytes:
    """The end of a Parquet file: schema, places and statistics of all columns, its length, and the magic number."""
    check_regular(file)
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - 8))
        length = int.from_bytes(opened.read(4), "little") + 8
        opened.seek(max(0, size - length))
        return opened.read()
