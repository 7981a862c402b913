"""One commit to a repository on the Hub, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo, SpaceInfo
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..files import temporary_folder
from .card_text import BLOCK, REPO_ID, update_card
from .errors import hub_errors

# A card whose last commit is called otherwise was edited by a person.
TITLE = "pdiff push"
# What runs a Space of ours.
SPACE_SDK = "gradio"

RepoInfo = ModelInfo | DatasetInfo | SpaceInfo


class PushOptions(TypedDict, total=False):
    """How something is pushed.

    Args:
        private (`bool`, *optional*, defaults to `False`): Make a new repository private.
        revision (`str`, *optional*): A branch; made when it does not exist.
        token (`str`, *optional*): Instead of that of `hf auth login`.
        create_pr (`bool`, *optional*, defaults to `False`): Propose the commit as a pull request.
    """

    private: bool
    revision: str | None
    token: str | None
    create_pr: bool


def select_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Files of a folder that match globs, by their names on the Hub; hidden ones are none of them."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found if not path.name.startswith(".")}


def make_api(token: str | None) -> HfApi:
    """A client of the Hub that says who it is."""
    return HfApi(token=token, library_name="pdiff_hf")


def repo_head(api: HfApi, repo_id: str, repo_type: str, revision: str | None) -> RepoInfo | None:
    """The repository at a branch, or at the main one where that branch will begin; `None` if there is none."""
    validate_repo_id(repo_id)
    try:
        return api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except RevisionNotFoundError:
        return api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return None


def read_stored(
    repo_id: str, repo_type: str, names: Iterable[str], folder: str, revision: str | None, token: str | None
) -> tuple[RepoInfo | None, list[Path | None]]:
    """The repository at a branch, and files that are pushed anew as they are there; `None` for what is not there."""
    api = make_api(token)
    with hub_errors(repo_id, revision, writing=True):
        head = repo_head(api, repo_id, repo_type, revision)
        return head, [read_remote(api, head, name, folder) for name in names]


def _type_of(head: RepoInfo) -> str:
    return {DatasetInfo: "dataset", SpaceInfo: "space"}.get(type(head), "model")


def read_remote(api: HfApi, head: RepoInfo | None, name: str, folder: str) -> Path | None:
    """A small file as it is on the Hub, or `None`."""
    if head is None or name not in {sibling.rfilename for sibling in head.siblings}:
        return None
    repo_type = _type_of(head)
    return Path(api.hf_hub_download(head.id, name, repo_type=repo_type, revision=head.sha, local_dir=folder))


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    repo_type: str,
    kind: str,
    mirror: Iterable[str] = (),
    parent: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Commit files at once; of those on the Hub that match `mirror`, only these are left.

    With `parent`, the commit that the files were made for, nothing is committed on top of another. For the last four,
    see [`PushOptions`].
    """
    api = make_api(token)
    if create_pr and revision is not None:
        raise ValueError(f"a pull request goes to the main branch; give create_pr or the revision {revision!r}.")
    with hub_errors(repo_id, revision, writing=True):
        head = repo_head(api, repo_id, repo_type, revision)
        if head is None:
            sdk = SPACE_SDK if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
        elif private and not head.private:
            raise ValueError(f"{repo_id} is public already; make it private in its settings, or push without.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        if head is None or revision is not None:
            head = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        stored = [sibling.rfilename for sibling in head.siblings]
        operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"]
        if "README.md" in files:
            card = _merge_card(api, head, files["README.md"], revision)
            if card is None:
                warnings.warn(f"{repo_id}: README.md was edited on the Hub and is kept as it is.", stacklevel=3)
            else:
                operations.append(CommitOperationAdd("README.md", card.encode("utf-8")))
        stale = [n for n in stored if n not in files and any(fnmatchcase(n, pattern) for pattern in mirror)]
        commit = api.create_commit(
            repo_id,
            [*operations, *(CommitOperationDelete(name) for name in stale if name != ".gitattributes")],
            commit_message=f"{TITLE} {kind}",
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            # Whoever commits in the meantime makes this fail, instead of a mixture.
            parent_commit=None if create_pr else parent or head.sha,
        )
    return commit.pr_url or commit.commit_url


def _merge_card(api: HfApi, head: RepoInfo, file: Path, revision: str | None) -> str | None:
    """The card to be pushed, with what a person wrote on the Hub; `None` when the one there is all a person's."""
    text = file.read_text(encoding="utf-8").replace(REPO_ID, head.id)
    with temporary_folder() as temporary:
        stored = read_remote(api, head, "README.md", temporary)
        if stored is None:
            return text
        existing = stored.read_bytes().decode("utf-8")
    if BLOCK.search(existing) is not None:
        return update_card(existing, text)
    repo_type = _type_of(head)
    (card,) = api.get_paths_info(head.id, ["README.md"], expand=True, revision=revision, repo_type=repo_type)
    return text if card.last_commit.title.startswith(TITLE) else None
