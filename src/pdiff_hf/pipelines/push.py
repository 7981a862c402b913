"""Pipelines to the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..base_model import BaseModel
from ..files import read_json
from ..hub.upload import push_files, select_files
from .standalone import export_standalone

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
            exported = export_standalone(files, temporary)
            push_files(exported, repo_id, "model", "pipeline", private, STANDALONE, token, False, mirror=["*"])
    return url


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
    if index.get("base_model") is not None:
        patterns += BaseModel.from_dict(index["base_model"], root=folder).carried_files()
    return select_files(folder, patterns)
