"""Pipelines to the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Unpack

from ..base_model import BaseModel
from ..files import read_json, temporary_folder
from ..hub.upload import PushOptions, push_files, select_files
from ..results.metrics import METRICS_FILE, TRAINED_FILES, Metrics
from .card import write_pipeline_card
from .pipeline_pdiff import PDiffPipeline
from .standalone import export_standalone

STANDALONE = "standalone"


def push_pipeline(
    folder: str | Path, repo_id: str, *, standalone: bool = False, **options: Unpack[PushOptions]
) -> str:
    """Push a saved pipeline with its base model's weights, card, figures and training config.

    Args:
        folder (`str` or `Path`): What [`PDiffPipeline.save_pretrained`] or a run wrote.
        repo_id (`str`): `user/name`; made when it does not exist.
        standalone (`bool`, *optional*, defaults to `False`): Also push the branch `standalone`, which plain diffusers
            loads with `trust_remote_code=True` where this package is not installed.
        options: `private`, `revision`, `token` and `create_pr`, see [`PushOptions`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the folder is no complete pipeline, or the Hub refuses; nothing is committed then.
    """
    files = pipeline_files(Path(folder))
    url = push_files(files, repo_id, "model", "pipeline", **options)
    if standalone:
        with temporary_folder() as temporary:
            exported = export_standalone(files, temporary)
            own = {**options, "revision": STANDALONE, "create_pr": False}
            push_files(exported, repo_id, "model", "pipeline", mirror=["*"], **own)
    return url


def push_loaded(pipeline: PDiffPipeline, repo_id: str, variant: str | None = None, **options: Any) -> str:
    """[`push_pipeline`] of a pipeline in memory, with what is known of the folder that it was loaded from."""
    with temporary_folder() as folder:
        pipeline.save_pretrained(folder, variant=variant)
        source = Path(pipeline._base_root or pipeline.config.get("_name_or_path") or folder)
        for name in (name for name in TRAINED_FILES if (source / name).is_file()):
            shutil.copyfile(source / name, folder / name)
        metrics = Metrics.read(source / METRICS_FILE) if (source / METRICS_FILE).is_file() else None
        write_pipeline_card(folder, metrics, report_dir=None if metrics is None else source)
        return push_pipeline(folder, repo_id, **options)


def pipeline_files(folder: Path) -> dict[str, Path]:
    """The files of a pipeline folder by their names on the Hub; logs and checkpoints are none of them.

    Raises:
        ValueError: a file is missing, or the base model's weights have another hash.
    """
    index = read_json(folder / "model_index.json")
    base_model = BaseModel.from_dict(index.get("base_model"), root=folder)
    patterns = ["model_index.json", "pipeline.py", "README.md", *TRAINED_FILES, METRICS_FILE, "*.png"]
    patterns += [] if base_model is None else base_model.carried_files()
    components = [name for name, value in index.items() if isinstance(value, list) and value != [None, None]]
    for name in [name for name in components if not name.startswith("_")]:
        own = [f"{name}/*.json", f"{name}/*.safetensors"]
        if not select_files(folder, own):
            raise ValueError(f"{folder}: expected the component {name!r} in a folder of its own, found none.")
        patterns += own
    return select_files(folder, patterns)
