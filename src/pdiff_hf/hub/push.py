"""Pushing of artefacts to the Hub: large files first, then one commit with everything, or nothing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..base_model import BaseModel
from ..data.shards import RECORDING, check_shard, shards
from ..files import read_json, write_json
from ..layout import ParameterLayout
from .card_text import BLOCK, REPO_ID, update_card
from .download import check_config
from .errors import hub_errors
from .standalone import export_standalone

# A card whose last commit is called otherwise was edited by a person.
TITLE = "pdiff push"

STANDALONE = "standalone"


def push_pipeline(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    standalone: bool = False,
) -> str:
    """Push a saved pipeline with its base model's weights, card, figures and training config.

    Args:
        folder (`str` or `Path`): What [`PDiffPipeline.save_pretrained`] or a run wrote.
        repo_id (`str`): `user/name`; made when it does not exist.
        private (`bool`, *optional*, defaults to `False`): Make a new repository private.
        revision (`str`, *optional*): A branch; made when it does not exist.
        token (`str`, *optional*): Instead of that of `hf auth login`.
        create_pr (`bool`, *optional*, defaults to `False`): Propose the commit as a pull request.
        standalone (`bool`, *optional*, defaults to `False`): Also push the branch `standalone`, which plain diffusers
            loads with `trust_remote_code=True` where this package is not installed.

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the folder is no complete pipeline, or the Hub refuses; nothing is committed then.
    """
    folder = Path(folder)
    files = pipeline_files(folder)
    url = push_files(files, repo_id, "model", "pipeline", private, revision, token, create_pr)
    if standalone:
        with tempfile.TemporaryDirectory() as temporary:
            exported = export_standalone(folder, temporary)
            push_files(exported, repo_id, "model", "pipeline", private, STANDALONE, token, False, mirror=["*"])
    return url


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    config: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push a parameter dataset; shards that the Hub has already are not sent again.

    Args:
        folder (`str` or `Path`): A complete parameter dataset.
        repo_id (`str`): `user/name`; made when it does not exist.
        config (`str`, *optional*): Name of this dataset among several in one repository; it gets a folder of its own.
        private, revision, token, create_pr: See [`push_pipeline`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the folder is no complete dataset, the repository holds one of another layout, or the Hub refuses;
            nothing is committed then.
    """
    folder = Path(folder)
    prefix = "" if config is None else f"{check_config(config)}/"
    layout, files = dataset_files(folder)
    files = {f"{prefix}{name}": path for name, path in files.items()}
    with tempfile.TemporaryDirectory() as temporary:
        api = make_api(token)
        with hub_errors(repo_id, revision, writing=True):
            head = repo_head(api, repo_id, "dataset", revision)
            stored = read_remote(api, head, f"{prefix}layout.json", temporary)
            known = read_remote(api, head, "README.md", temporary)
        if stored is not None:
            check_same_layout(repo_id, folder, read_json(stored), layout)
        files.pop(f"{prefix}README.md")
        files["README.md"] = write_configs_card(folder / "README.md", known, config, Path(temporary) / "card.md")
        files[f"{prefix}stats.json"] = publish_stats(folder / "stats.json", Path(temporary) / "stats.json")
        mirror = [f"{prefix}data/train-*.parquet"]
        return push_files(files, repo_id, "dataset", "dataset", private, revision, token, create_pr, mirror)


def check_same_layout(repo_id: str, folder: Path, remote: dict, layout: ParameterLayout) -> None:
    """Raise `ValueError` when a repository's `layout.json` is not of the layout of a folder to be pushed to it."""
    if ParameterLayout.from_dict(remote).fingerprint != layout.fingerprint:
        raise ValueError(
            f"{repo_id}: expected the layout {layout.fingerprint[:12]} of {folder}, found a dataset of another; push "
            "it as a config of its own, or to another repository."
        )


def write_configs_card(own: Path, known: Path | None, config: str | None, output: Path) -> Path:
    """Write the card of a repository of one or several datasets; of several, it is that of the first.

    Args:
        own (`Path`): The card of the dataset that is pushed.
        known (`Path`, *optional*): The card on the Hub.
        config (`str`, *optional*): Name of the dataset that is pushed.
        output (`Path`): Where the card is written.
    """
    prefix, name = ("", "default") if config is None else (f"{config}/", config)
    text = own if known is None or config is None else known
    card = DatasetCard(text.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    others = [] if known is None else DatasetCard(known.read_text(encoding="utf-8")).data.configs or []
    listed = {"config_name": name, "data_files": f"{prefix}data/train-*.parquet"}
    card.data.configs = [*(c for c in others if c["config_name"] != name), listed]
    output.write_text(str(card), encoding="utf-8")
    return output


def publish_stats(file: Path, output: Path) -> Path:
    """Write `stats.json` without paths of this machine."""
    # The tasks load much else, and the pipeline imports this module.
    from ..tasks.sources import without_paths

    stats = read_json(file)
    if task := stats["metadata"].get("task"):
        stats["metadata"] = {**stats["metadata"], "task": without_paths(task)}
    write_json(output, stats)
    return output


def pipeline_files(folder: Path) -> dict[str, Path]:
    """The files of a pipeline folder by their names on the Hub; logs and checkpoints are none of them.

    Raises:
        ValueError: a file is missing, or the base model's weights have another hash.
    """
    index = read_json(folder / "model_index.json")
    components = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    patterns = ["model_index.json", "pipeline.py", "README.md", "train_config.json", "metrics.json", "*.png"]
    for name in components:
        own = [*(folder / name).glob("*.json"), *(folder / name).glob("*.safetensors")]
        if not own:
            raise ValueError(f"{folder}: expected the component {name!r} in a folder of its own, found none.")
        patterns += [f"{name}/*.json", f"{name}/*.safetensors"]
    return _select(folder, [*patterns, *_carried_weights(index.get("base_model"), folder)])


def dataset_files(folder: Path) -> tuple[ParameterLayout, dict[str, Path]]:
    """The layout and the files of a parameter dataset's folder by their names on the Hub.

    Raises:
        ValueError: the folder is no complete dataset.
    """
    if not (folder / "layout.json").is_file():
        raise ValueError(f"expected a parameter dataset at {folder}, found no layout.json there.")
    if (folder / RECORDING).exists():
        raise ValueError(f"{folder} holds a recording that was not closed; call finish_recording first.")
    values = read_json(folder / "layout.json")
    layout = ParameterLayout.from_dict(values)
    if not shards(folder):
        raise ValueError(f"expected Parquet shards {folder / 'data' / 'train-*.parquet'}, found none.")
    for file in shards(folder):
        check_shard(file, layout)
    patterns = ["layout.json", "stats.json", "README.md", "data/train-*.parquet", "*.png"]
    return layout, _select(folder, [*patterns, *_carried_weights(values["base_model"], folder)])


def _carried_weights(base: Mapping | None, folder: Path) -> list[str]:
    """Path of the base model's weights in the folder, if they are there; their hash is checked."""
    base_model = None if base is None else BaseModel.from_dict(base, root=folder)
    if base_model is None or base_model.carried_weights is None:
        return []
    # Copied onto itself: only its hash is checked.
    return [base_model.copy_to(folder).weights]


def _select(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found if not path.name.startswith(".")}


def make_api(token: str | None) -> HfApi:
    """A client of the Hub that says who it is."""
    return HfApi(token=token, library_name="pdiff_hf")


def repo_head(api: HfApi, repo_id: str, repo_type: str, revision: str | None) -> ModelInfo | DatasetInfo | None:
    """The repository at a branch, or at the main one where that branch will begin; `None` if there is none."""
    validate_repo_id(repo_id)
    try:
        return api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except RevisionNotFoundError:
        return api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return None


def read_remote(api: HfApi, head: ModelInfo | DatasetInfo | None, name: str, folder: str) -> Path | None:
    """A small file as it is on the Hub, or `None`."""
    if head is None or name not in {sibling.rfilename for sibling in head.siblings}:
        return None
    repo_type = "dataset" if isinstance(head, DatasetInfo) else "model"
    return Path(api.hf_hub_download(head.id, name, repo_type=repo_type, revision=head.sha, local_dir=folder))


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    repo_type: str,
    kind: str,
    private: bool,
    revision: str | None,
    token: str | None,
    create_pr: bool,
    mirror: Iterable[str] = (),
    parent: str | None = None,
) -> str:
    """Commit files at once; of those on the Hub that match `mirror`, only these are left.

    With `parent`, the commit that the files were made for, nothing is committed on top of another.
    """
    api = make_api(token)
    if create_pr and revision is not None:
        raise ValueError(f"a pull request goes to the main branch; give create_pr or the revision {revision!r}.")
    with hub_errors(repo_id, revision, writing=True):
        head = repo_head(api, repo_id, repo_type, revision)
        if head is None:
            api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
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


def _merge_card(api: HfApi, head: ModelInfo | DatasetInfo, file: Path, revision: str | None) -> str | None:
    """The card to be pushed, with what a person wrote on the Hub; `None` when the one there is all a person's."""
    text = file.read_text(encoding="utf-8").replace(REPO_ID, head.id)
    with tempfile.TemporaryDirectory() as temporary:
        stored = read_remote(api, head, "README.md", temporary)
        if stored is None:
            return text
        existing = stored.read_bytes().decode("utf-8")
    if BLOCK.search(existing) is not None:
        return update_card(existing, text)
    repo_type = "dataset" if isinstance(head, DatasetInfo) else "model"
    (card,) = api.get_paths_info(head.id, ["README.md"], expand=True, revision=revision, repo_type=repo_type)
    return text if card.last_commit.title.startswith(TITLE) else None
