"""Parameter datasets from the Hub: downloaded, or opened to be streamed."""

from __future__ import annotations

import re
from pathlib import Path

from ..base_model import BaseModel
from ..files import read_json
from ..hub.snapshot import Snapshot, some_of, split_hub_id
from ..layout import ParameterLayout
from .folder import config_folder


def download_dataset(
    repo_id: str,
    revision: str | None = None,
    config: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download a parameter dataset.

    Args:
        repo_id (`str`): `user/name`.
        revision (`str`, *optional*): Branch, tag or commit.
        config (`str`, *optional*): One of several datasets in the repository.
        token (`str`, *optional*): Instead of that of `hf auth login`.
        cache_dir (`str` or `Path`, *optional*): Instead of the usual cache.
        local_files_only (`bool`, *optional*, defaults to `False`): Ask the cache only.

    Returns:
        `Path`: a folder in the cache with `layout.json`, `stats.json`, `data/` and the base model's weights.

    Raises:
        ValueError: there is no such dataset, or a file of it is missing, malformed or damaged.
    """
    snapshot, folder, base_model = _open_dataset(repo_id, revision, config, token, cache_dir, local_files_only)
    snapshot.fetch(_shards(snapshot, config))
    try:
        if base_model is not None:
            base_model.carried_files()
    except ValueError as error:
        raise ValueError(f"{snapshot}: {error}") from error
    return folder


def open_remote_dataset(
    repo_id: str, revision: str | None = None, config: str | None = None, token: str | bool | None = None
) -> tuple[Path, list[str]]:
    """What streaming needs: a local folder with `layout.json` alone, and the addresses of the shards on the Hub.

    Raises:
        ValueError: see [`download_dataset`].
    """
    snapshot, folder, _ = _open_dataset(repo_id, revision, config, token, None, False)
    return folder, [f"hf://datasets/{repo_id}@{snapshot.commit}/{name}" for name in _shards(snapshot, config)]


def _open_dataset(repo_id, revision, config, token, cache_dir, local_files_only):
    prefix = "" if config is None else f"{check_config(config)}/"
    snapshot = Snapshot(repo_id, f"{prefix}layout.json", "dataset", revision, token, cache_dir, local_files_only)
    folder = snapshot.folder / prefix
    values = read_json(folder / "layout.json")
    try:
        ParameterLayout.from_dict(values)
        base = values["base_model"]
        base_model = None if base is None else BaseModel.from_dict(base, root=folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{snapshot}: {prefix}layout.json: {error}") from error
    wanted = [f"{prefix}stats.json"]
    if base_model is not None and base_model.carried_weights is not None:
        wanted.append(f"{prefix}{base_model.weights}")
    snapshot.fetch(wanted)
    return snapshot, folder, base_model


def _shards(snapshot: Snapshot, config: str | None) -> list[str]:
    prefix = "" if config is None else f"{config}/"
    names = [
        name for name in snapshot.match(f"{prefix}data/train-*.parquet") if name.count("/") == prefix.count("/") + 1
    ]
    if not names:
        raise ValueError(
            f"{snapshot}: expected Parquet shards {prefix}data/train-*.parquet, found {some_of(snapshot.files)}."
        )
    return names


def check_config(config: str) -> str:
    """Return the name of a dataset's config; it is a folder's name on the Hub.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", config) or config in ("data", "base", "default"):
        raise ValueError(f"expected a config of letters, digits, '-', '_' and '.', found {config!r}.")
    return config


def resolve_dataset(source: str | Path, config: str | None = None) -> Path:
    """The folder of a parameter dataset: `source` itself, or a download of `user/name[@revision]`.

    Raises:
        ValueError: see [`download_dataset`].
    """
    found = split_hub_id(source)
    return config_folder(source, config) if found is None else download_dataset(*found, config=config)
