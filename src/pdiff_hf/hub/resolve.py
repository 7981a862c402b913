"""Names that people give: a folder, or what is on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..data.configs import config_folder
from .download import download_dataset, download_pipeline


def split_hub_id(source: str | Path) -> tuple[str, str | None] | None:
    """`user/name` and the revision of `user/name[@revision]`; `None` for a path that exists or another form."""
    form = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?"
    found = None if Path(source).exists() else re.fullmatch(form, str(source))
    return None if found is None else (found[1], found[2])


def resolve_dataset(source: str | Path, config: str | None = None) -> Path:
    """The folder of a parameter dataset: `source` itself, or a download of `user/name[@revision]`.

    Raises:
        ValueError: see [`download_dataset`].
    """
    found = split_hub_id(source)
    return config_folder(source, config) if found is None else download_dataset(*found, config=config)


def resolve_pipeline(source: str | Path) -> Path:
    """The folder of a pipeline: `source` itself, or a download of `user/name[@revision]`.

    Raises:
        ValueError: see [`download_pipeline`].
    """
    found = split_hub_id(source)
    return Path(source) if found is None else download_pipeline(found[0], revision=found[1])
