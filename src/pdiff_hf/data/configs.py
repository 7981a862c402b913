"""Several parameter datasets in one folder or repository: one as it is, others in sub-folders named as configs."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import DatasetCard

from ..files import atomic_write

DEFAULT = "default"

CARD = "---\ntags:\n- pdiff-hf\n---\n# Parameter datasets\n"


def dataset_configs(path: str | Path) -> list[str]:
    """Names of the parameter datasets in a folder; the one that is not in a sub-folder is `"default"`."""
    folder = Path(path)
    names = sorted(file.parent.name for file in folder.glob("*/layout.json"))
    named = [name for name in names if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and name != DEFAULT]
    return [DEFAULT, *named] if (folder / "layout.json").is_file() else named


def config_folder(path: str | Path, config: str | None = None) -> Path:
    """The folder of one of the parameter datasets in a folder.

    Raises:
        ValueError: there is none of that name, or the folder holds several and none of them is the default.
    """
    names = dataset_configs(path)
    if config is None and (DEFAULT in names or not names):
        return Path(path)
    if config not in names:
        found = "none" if config is None else repr(config)
        raise ValueError(f"{path}: expected a config, one of {', '.join(names) or 'none'}; found {found}.")
    return Path(path) if config == DEFAULT else Path(path) / config


def write_configs(path: str | Path) -> None:
    """List all parameter datasets of a folder in its `README.md`, so that `datasets.load_dataset` knows them.

    The text and the other metadata of a `README.md` that is there are kept.

    Raises:
        ValueError: the folder holds no parameter dataset.
    """
    file, names = Path(path) / "README.md", dataset_configs(path)
    if not names:
        raise ValueError(f"{path}: expected parameter datasets, found none.")
    card = DatasetCard(file.read_text(encoding="utf-8") if file.is_file() else CARD, ignore_metadata_errors=True)
    card.data.configs = [
        {"config_name": name, "data_files": f"{'' if name == DEFAULT else name + '/'}data/train-*.parquet"}
        for name in names
    ]
    with atomic_write(file) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
