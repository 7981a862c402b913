"""Loading of artefacts from the Hub: into the cache of huggingface_hub, checked before anything is used."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings
from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError, HTTPError

from ..base_model import BaseModel
from ..files import read_json, sha256_file
from ..layout import ParameterLayout
from .errors import hub_errors

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# Of a download whose connection is cut; huggingface_hub repeats some of them, not all.
ATTEMPTS = 3

# What a component of a pipeline may come from; an index could name any module that is installed.
COMPONENT_LIBRARIES = ("diffusers", "pdiff_hf")


class Snapshot:
    """One commit of a repository on the Hub; files are downloaded to `folder` when they are asked for.

    Args:
        repo_id (`str`): `user/name`.
        index (`str`, *optional*): The file that makes it an artefact; downloaded at once.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        revision (`str`, *optional*): Branch, tag or commit; the main branch by default.
        token (`str`, *optional*): Instead of that of `hf auth login`.
        cache_dir (`str` or `Path`, *optional*): Instead of the usual cache.
        local_files_only (`bool`, *optional*, defaults to `False`): Ask the cache only.
        force_download (`bool`, *optional*, defaults to `False`): Download what is in the cache, too.

    Raises:
        ValueError: the Hub refuses or does not answer, the file is missing, or a name leaves the repository's folder.
    """

    def __init__(
        self,
        repo_id: str,
        index: str | None = None,
        repo_type: str = "model",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ):
        self._where = {"repo_id": repo_id, "repo_type": repo_type, "cache_dir": cache_dir}
        self._options = {"token": token, "local_files_only": local_files_only, "force_download": force_download}
        self._requested = revision
        api = HfApi(token=token)
        with hub_errors(repo_id, revision):
            found = api.resolve_revision(**self._where, revision=revision, local_files_only=local_files_only)
            if not re.fullmatch(r"[0-9a-f]{40}", found.resolved):
                raise ValueError(f"{repo_id}: expected the hash of a commit, the Hub says {found.resolved!r}.")
            self.commit = found.resolved
            try:
                get_cached_repo_tree(**self._where, revision=self.commit)
            except CachedRepoTreeNotFoundError:
                if found.initial == found.resolved and not local_files_only:
                    # A commit was resolved without asking; unlike later requests, this one is not repeated for long.
                    api.repo_info(repo_id, repo_type=repo_type, revision=self.commit)
            # By its exact name: a pattern could match names that leave the folder, which are only known afterwards.
            self._revision = found
            self.folder = self._download([] if index is None else [glob.escape(index)])
            self.files = {file.path for file in get_cached_repo_tree(**self._where, revision=self.commit)}
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or set("\\:\0") & set(name) or str(path) != name:
                raise ValueError(f"{repo_id}: expected files inside of the repository, found the name {name!r}.")
        if index is None:
            return
        if index not in self.files:
            raise ValueError(
                f"{self}: expected {index}, found {_some(self.files)}; it is no artefact of this kind, or of another "
                "config or revision."
            )
        self._verify([index], known=())

    def __str__(self) -> str:
        repo_id = self._where["repo_id"]
        return repo_id if self._requested is None else f"{repo_id} at revision {self._requested!r}"

    def _download(self, patterns: list[str]) -> Path:
        options = {**self._where, **self._options, "revision": self._revision, "allow_patterns": patterns}
        for attempt in range(ATTEMPTS):
            try:
                return Path(snapshot_download(**options))
            except HTTPError as error:
                # A cut connection: what has come is kept, and the rest is asked for.
                if isinstance(error, HfHubHTTPError) or attempt == ATTEMPTS - 1:
                    raise

    def fetch(self, names: Iterable[str]) -> None:
        """Download files by their names; large ones are checked against their hash.

        Raises:
            ValueError: a file is missing, or what came is damaged.
        """
        names = list(names)
        if missing := [name for name in names if name not in self.files]:
            raise ValueError(f"{self}: expected a file {missing[0]!r}, found {_some(self.files)}.")
        where = {**self._where, "revision": self.commit}
        known = {name for name in names if isinstance(try_to_load_from_cache(filename=name, **where), str)}
        with hub_errors(self._where["repo_id"], self._requested):
            self._download([glob.escape(name) for name in names])
        self._verify(names, known)

    def match(self, pattern: str) -> list[str]:
        """Names of the files that match a glob."""
        return sorted(name for name in self.files if fnmatchcase(name, pattern))

    def _verify(self, names: Iterable[str], known: Iterable[str]) -> None:
        for name in names:
            # The cache names a large file by its SHA-256, where the system has symbolic links, but does not check it.
            blob = (self.folder / name).resolve()
            if name not in known and re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
                (self.folder / name).unlink()
                blob.unlink()
                raise ValueError(
                    f"{self}: {name} came damaged: expected sha256 {blob.name[:12]}…, found another; try again."
                )


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
    _check_weights(snapshot, folder, base_model)
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
            f"{snapshot}: expected Parquet shards {prefix}data/train-*.parquet, found {_some(snapshot.files)}."
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


def download_pipeline(repo_id: str, variant: str | None = None, components: Iterable[str] = (), **options) -> Path:
    """Download a pipeline with its base model's weights.

    Args:
        repo_id (`str`): `user/name`.
        variant (`str`, *optional*): Of the weights, such as `"fp16"`.
        components (`Iterable[str]`, *optional*): Those that are passed in and need not be downloaded.
        options: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`.

    Returns:
        `Path`: a folder in the cache that [`PDiffPipeline.from_pretrained`] takes.

    Raises:
        ValueError: there is no such pipeline, it carries pickles or code of its own only, or a file of it is missing,
            malformed or damaged.
    """
    snapshot = Snapshot(repo_id, "model_index.json", **options)
    index = read_json(snapshot.folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != "PDiffPipeline":
        own = isinstance(index, dict) and isinstance(index.get("_class_name"), list)
        hint = "; it carries its own code, take the main branch" if own else ""
        raise ValueError(f"{snapshot}: expected a PDiffPipeline in model_index.json, found another{hint}.")
    names, all_weights = [], []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or name in components:
            continue
        if len(value) != 2 or value[0] not in COMPONENT_LIBRARIES:
            raise ValueError(
                f"{snapshot}: component {name!r} should come from one of {COMPONENT_LIBRARIES}, found {value}."
            )
        own = [file for file in snapshot.match(f"{glob.escape(name)}/*") if file.count("/") == 1]
        weights = [file for file in own if file.endswith(".safetensors")]
        pickles = [file for file in own if file.endswith(PICKLES)]
        if pickles and not weights:
            raise ValueError(
                f"{snapshot}: expected safetensors, found {pickles[0]!r}, which runs code when it is read; ask its "
                "owner to save it as safetensors."
            )
        indices = [file for file in own if ".safetensors.index." in file]
        all_weights += weights + indices
        names += [file for file in own if file.endswith(".json") and file not in indices]
    if all_weights or variant is not None:
        names += variant_compatible_siblings(all_weights, variant=variant)[0]
    try:
        base = index.get("base_model")
        base_model = None if base is None else BaseModel.from_dict(base, root=snapshot.folder)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{snapshot}: model_index.json: {error}") from error
    if base_model is not None and base_model.carried_weights is not None:
        names.append(base_model.weights)
    # What a card of it is made of, should it be pushed again.
    names += snapshot.files & {"metrics.json", "train_config.json"}
    snapshot.fetch(names)
    _check_weights(snapshot, snapshot.folder, base_model)
    return snapshot.folder


def _check_weights(snapshot: Snapshot, folder: Path, base_model: BaseModel | None) -> None:
    if base_model is None or base_model.carried_weights is None:
        return
    found = sha256_file(folder / base_model.weights)
    if found != base_model.sha256:
        raise ValueError(
            f"{snapshot}: {base_model.weights} is not the file that it should be: expected sha256 "
            f"{str(base_model.sha256)[:12]}…, found {found[:12]}…."
        )


def _some(files: Iterable[str]) -> str:
    names = sorted(files)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "") or "no files"
