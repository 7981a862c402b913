"""Parameter datasets from the Hub: downloaded, or opened to be streamed."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ..base_model import BaseModel
from ..conditions import CONDITION_FILE
from ..files import errors_of, read_json
from ..hub.snapshot import Snapshot, some_of
from .folder import NAME, read_layout
from .integrity import STATS, check_names, listed_shards


def download_dataset(repo_id: str, revision: str | None = None, config: str | None = None, **options) -> Path:
    """Download a parameter dataset.

    Args:
        repo_id (`str`): `user/name`.
        revision (`str`, *optional*): Branch, tag or commit.
        config (`str`, *optional*): One of several datasets in the repository.
        options: `token`, `cache_dir` and `local_files_only`, see [`Snapshot`].

    Returns:
        `Path`: a folder in the cache with `layout.json`, `stats.json`, `data/` and the base model's weights.

    Raises:
        ValueError: there is no such dataset, or a file of it is missing, malformed or damaged.
    """
    snapshot, folder, base_model = _open_dataset(repo_id, revision, config, **options)
    snapshot.fetch(_shards(snapshot, config))
    with errors_of(snapshot):
        if base_model is not None:
            base_model.carried_files()
    return folder


def open_remote_dataset(
    repo_id: str, revision: str | None = None, config: str | None = None
) -> tuple[Path, list[str]]:
    """What streaming needs: a local folder with `layout.json` alone, and the addresses of the shards on the Hub."""
    snapshot, folder, _ = _open_dataset(repo_id, revision, config)
    names, listed = _shards(snapshot, config), _listed(snapshot, config)
    for name, found in snapshot.hashes(names if listed else []).items():
        if (expected := listed[PurePosixPath(name).name]["sha256"]) != found:
            raise ValueError(
                f"{snapshot}: {name} is damaged: expected sha256 {expected[:12]}…, the Hub has {found[:12]}…; push "
                "the dataset again."
            )
    return folder, [f"hf://datasets/{repo_id}@{snapshot.commit}/{name}" for name in names]


def _open_dataset(
    repo_id: str, revision: str | None, config: str | None, **options
) -> tuple[Snapshot, Path, BaseModel | None]:
    prefix = config_prefix(config)
    snapshot = Snapshot(repo_id, f"{prefix}layout.json", "dataset", revision, **options)
    folder = snapshot.folder / prefix
    with errors_of(snapshot):
        _, base_model = read_layout(folder)
    wanted = [f"{prefix}{STATS}"]
    if base_model is not None and base_model.carried_weights is not None:
        wanted.append(f"{prefix}{base_model.weights}")
    if f"{prefix}{CONDITION_FILE}" in snapshot.files:
        wanted.append(f"{prefix}{CONDITION_FILE}")
    snapshot.fetch(wanted)
    return snapshot, folder, base_model


def _shards(snapshot: Snapshot, config: str | None) -> list[str]:
    pattern = f"{config_prefix(config)}data/train-*.parquet"
    names = [name for name in snapshot.match(pattern) if name.count("/") == pattern.count("/")]
    if not names:
        raise ValueError(f"{snapshot}: expected Parquet shards {pattern}, found {some_of(snapshot.files)}.")
    listed = _listed(snapshot, config)
    check_names(snapshot, [PurePosixPath(name).name for name in names], listed)
    return names


def _listed(snapshot: Snapshot, config: str | None) -> dict[str, dict[str, Any]] | None:
    return listed_shards(read_json(snapshot.folder / config_prefix(config) / STATS))


def config_prefix(config: str | None) -> str:
    """What stands before the names of the files of one of several datasets, or the only one, in a repository."""
    if config is None:
        return ""
    if not NAME.fullmatch(config) or config in ("data", "base", "default"):
        raise ValueError(f"expected a config of letters, digits, '-', '_' and '.', found {config!r}.")
    return f"{config}/"
