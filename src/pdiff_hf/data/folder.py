"""The folder of a parameter dataset: its `layout.json`, and which of several datasets it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..conditions import CONDITION_FILE, ConditionSpec
from ..files import errors_of, read_json, write_json

# Whoever looks for a dataset need not wait for torch.
if TYPE_CHECKING:
    from ..base_model import BaseModel
    from ..layout import ParameterLayout

SCHEMA = 1

DEFAULT = "default"

# Of a folder that holds one of several datasets.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_layout(path: str | Path) -> tuple[ParameterLayout, BaseModel | None]:
    """Read `layout.json` of a dataset folder.

    Raises:
        ValueError: it is missing or damaged, or names a file outside of the folder.
    """
    from ..base_model import BaseModel
    from ..layout import ParameterLayout

    if not Path(path).is_dir():
        raise ValueError(f"expected a parameter dataset at {path}, found no such folder.")
    file = Path(path) / "layout.json"
    values = read_json(file)
    with errors_of(file, KeyError, TypeError):
        return ParameterLayout.from_dict(values), BaseModel.from_dict(values["base_model"], root=path)


def num_rows(path: str | Path) -> int | None:
    """How many rows the dataset in a folder says that it has, `None` where that cannot be read."""
    try:
        found = read_json(Path(path) / "stats.json")["num_rows"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int else None


def dataset_configs(path: str | Path) -> list[str]:
    """Names of the parameter datasets in a folder; the one that is not in a sub-folder is `"default"`."""
    folder = Path(path)
    names = sorted(file.parent.name for file in folder.glob("*/layout.json"))
    named = [name for name in names if NAME.fullmatch(name) and name != DEFAULT]
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


def write_layout(
    path: str | Path, layout: ParameterLayout, base_model: BaseModel | None, conditions: ConditionSpec | None = None
) -> None:
    """Write `layout.json`, the base model's weights beside it when it has any, and `condition.json`."""
    if conditions is None:
        (Path(path) / CONDITION_FILE).unlink(missing_ok=True)
    else:
        conditions.save(Path(path))
    if base_model is not None and base_model.weights is not None:
        base_model = base_model.copy_to(path)
    base = None if base_model is None else base_model.to_dict()
    write_json(Path(path) / "layout.json", {**layout.to_dict(), "base_model": base})
