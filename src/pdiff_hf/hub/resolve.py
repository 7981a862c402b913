"""Names that people give: a folder, or what is on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..data.configs import config_folder
from .download import download_dataset, download_pipeline


def is_hub_id(source: str | Path) -> bool:
    """Whether `source` is no path that exists, but has the form `user/name`, with `@revision` or without."""
    form = r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?"
    return not Path(source).exists() and re.fullmatch(form, str(source)) is not None


def resolve_dataset(source: str | Path, config: str | None = None) -> Path:
    """The folder of a parameter dataset: `source` itself, or a download of `user/name[@revision]`.

    Raises:
        ValueError: see [`download_dataset`].
    """
    if not is_hub_id(source):
        return config_folder(source, config)
    repo_id, _, revision = str(source).partition("@")
    return download_dataset(repo_id, revision=revision or None, config=config)


def resolve_pipeline(source: str | Path) -> Path:
    """The folder of a pipeline: `source` itself, or a download of `user/name[@revision]`.

    Raises:
        ValueError: see [`download_pipeline`].
    """
    if not is_hub_id(source):
        return Path(source)
    repo_id, _, revision = str(source).partition("@")
    return download_pipeline(repo_id, revision=revision or None)
