"""Repositories on the Hub by name, and one commit of one, downloaded and checked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import sha256_file

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# Of a download whose connection is cut; huggingface_hub repeats some of them, not all.
ATTEMPTS = 3


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
        # Here and below: names are told apart without the Hub's client.
        from huggingface_hub import HfApi, get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        from .errors import hub_errors

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
                f"{self}: expected {index}, found {some_of(self.files)}; it is no artefact of this kind, or of "
                "another config or revision."
            )
        self._verify([index], known=())

    def __str__(self) -> str:
        repo_id = self._where["repo_id"]
        return repo_id if self._requested is None else f"{repo_id} at revision {self._requested!r}"

    def _download(self, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        options = {**self._where, **self._options, "revision": self._revision, "allow_patterns": patterns}
        for attempt in range(ATTEMPTS):
            try:
                return Path(snapshot_download(**options))
            except HTTPError as error:
                # A cut connection: what has come is kept, and the rest is asked for.
                if isinstance(error, HfHubHTTPError) or attempt == ATTEMPTS - 1:
                    raise

    def fetch(self, names: Iterable[str]) -> None:
        """Download files by their names; large ones are checked against their hash."""
        from huggingface_hub import try_to_load_from_cache

        from .errors import hub_errors

        names = list(names)
        if missing := [name for name in names if name not in self.files]:
            raise ValueError(f"{self}: expected a file {missing[0]!r}, found {some_of(self.files)}.")
        where = {**self._where, "revision": self.commit}
        known = {name for name in names if isinstance(try_to_load_from_cache(filename=name, **where), str)}
        with hub_errors(self._where["repo_id"], self._requested):
            self._download([glob.escape(name) for name in names])
        self._verify(names, known)

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """The SHA-256 of the large ones among some files, as the Hub knows it."""
        from huggingface_hub import HfApi

        from .errors import hub_errors

        api, repo_id = HfApi(token=self._options["token"]), self._where["repo_id"]
        with hub_errors(repo_id, self._requested):
            parts = [
                api.get_paths_info(
                    repo_id, names[start : start + 500], repo_type=self._where["repo_type"], revision=self.commit
                )
                for start in range(0, len(names), 500)
            ]
        return {file.path: file.lfs.sha256 for part in parts for file in part if file.lfs is not None}

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


def some_of(files: Iterable[str]) -> str:
    """The first few of some names, as errors name them."""
    names = sorted(files)
    return ", ".join(map(short_name, names[:4])) + (", …" if len(names) > 4 else "") or "no files"


def short_name(name: str) -> str:
    """A name from a file as it is printed: of 80 characters at most, and none that a terminal would obey."""
    text = "".join(character if character.isprintable() else "?" for character in name[:81])
    return text if len(text) <= 80 else f"{text[:79]}…"


def split_hub_id(source: str | Path) -> tuple[str, str | None] | None:
    """`user/name` and the revision of `user/name[@revision]`; `None` for a path, and for another form.

    What would lie in a folder that exists is a path: a mistyped one is not asked of the Hub.
    """
    form = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?"
    is_path = Path(source).exists() or ("/" in str(source) and Path(source).parent.is_dir())
    found = None if is_path else re.fullmatch(form, str(source))
    return None if found is None else (found[1], found[2])


def local_folder(dataset: str) -> Path | None:
    """The folder that a dataset is, or should be; `None` for one on the Hub."""
    folder = Path(dataset).expanduser()
    is_path = folder.exists() or dataset.startswith((".", "~", os.sep)) or dataset.count("/") > 1
    return folder if is_path else None


def without_paths(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's configuration or description with folders of this machine by their names only, to be published."""
    kept = dict(task)
    # Names that are no folders: what is embedded or made here.
    keys = [key for key in ("dataset", "tokenizer") if kept.get(key) not in (None, "digits", "words")]
    for key in keys:
        if (folder := local_folder(kept[key])) is not None:
            kept[key] = folder.resolve().name
    # `/home/me/nets.py:evaluate` is `nets.py:evaluate`.
    if "function" in kept:
        kept["function"] = Path(str(kept["function"])).name
    return kept
