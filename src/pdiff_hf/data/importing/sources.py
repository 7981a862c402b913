"""Checkpoints on the Hub: revisions of a repository, and repositories that are fine-tunes of one network."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.hf_api import RepoFile

from ...files import errors_of, read_json
from ...hub.card_text import split_card
from ...hub.errors import hub_errors
from ...hub.snapshot import Snapshot
from .checkpoint import Checkpoint, check_number
from .names import parse_hub_source
from .state_dict import saved_model_files

WEIGHTS = re.compile(r"(model|pytorch_model)(-[0-9]+-of-[0-9]+)?\.(safetensors|bin)")


def find_remote(source: str, all_revisions: bool = False) -> list[Checkpoint]:
    """The checkpoints of one repository, which is one run; weights are downloaded when they are read.

    Args:
        source (`str`): `hub:user/name`, the main branch, or `hub:user/name@revision,…`.
        all_revisions (`bool`, *optional*, defaults to `False`): All commits of the main branch that changed weights.

    Raises:
        ValueError: the Hub refuses or does not answer, or the repository holds no model.
    """
    repo_id, revisions = parse_hub_source(source)
    if all_revisions:
        if revisions:
            raise ValueError(f"expected all revisions or those named by {source!r}, found both.")
        revisions = changed_weights(repo_id)
        if not revisions:
            raise ValueError(f"{repo_id}: expected commits with model.safetensors or pytorch_model.bin, found none.")
    return [_checkpoint(repo_id, revision) for revision in revisions or [None]]


def changed_weights(repo_id: str) -> list[str]:
    """The commits of the main branch that changed the weights, the oldest first."""
    api, commits, before = HfApi(), [], None
    with hub_errors(repo_id):
        for commit in reversed(api.list_repo_commits(repo_id)):
            tree = api.list_repo_tree(repo_id, revision=commit.commit_id)
            files = {
                file.path: file.blob_id for file in tree if isinstance(file, RepoFile) and WEIGHTS.fullmatch(file.path)
            }
            if files and files != before:
                commits.append(commit.commit_id)
            before = files
    return commits


def _checkpoint(repo_id: str, revision: str | None) -> Checkpoint:
    snapshot = Snapshot(repo_id, revision=revision)

    def fetch(name: str) -> Path:
        snapshot.fetch([name])
        return snapshot.folder / name

    where, root = str(snapshot), {name for name in snapshot.files if "/" not in name}
    weights = saved_model_files(root, lambda name: read_json(fetch(name)), where)

    def files() -> list[Path]:
        snapshot.fetch(weights)
        return [snapshot.folder / name for name in weights]

    metrics = card_metrics(fetch("README.md"), where) if "README.md" in root else {}
    config = fetch("config.json") if "config.json" in root else None
    source = repo_id if revision is None else f"{repo_id}@{revision}"
    return Checkpoint(where, source, files, repo_id, snapshot.commit, config, metrics=metrics)


def card_metrics(file: Path, where: str) -> dict[str, float]:
    """The metrics in the `model-index` of a card that have one value: of the test split `test_…`, else `val_…`.

    An accuracy above 1 is taken for a percentage: cards have both. Malformed metadata are a `ValueError`.
    """
    with errors_of(f"{where}: README.md: malformed metadata"):
        split_card(file.read_text(encoding="utf-8"))
        results = ModelCard.load(file).data.eval_results or []
    values: dict[str, set[float]] = {}
    for result in results:
        kind = re.sub(r"\W+", "_", str(result.metric_type).lower())
        if result.dataset_split == "train" or not isinstance(result.metric_value, (int, float)):
            continue
        value = float(result.metric_value)
        if kind == "accuracy" and 1 < value <= 100:
            value /= 100
        name = f"{'test' if result.dataset_split == 'test' else 'val'}_{kind}"
        values.setdefault(name, set()).add(check_number(value, name, f"{where}: README.md"))
    # Of several data sets under one name, none is the one.
    return {name: found.pop() for name, found in values.items() if len(found) == 1}
