"""Files that recipes are composed of: listed, found and read."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "recipes"
# Axis → folder, in the order of a name.
AXES = {"network": "networks", "selection": "selections", "data set": "data"}
OVERLAYS = {"preset": "presets", "profile": "profiles"}


def part_names(axis: str) -> list[str]:
    """Names of the shipped parts of an axis (`AXES`) or overlays (`OVERLAYS`)."""
    return sorted(file.stem for file in (FOLDER / {**AXES, **OVERLAYS}[axis]).glob("*.yaml"))


def named_recipes() -> list[str]:
    """Names of the shipped recipes that have a file of their own."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_part(name: str, axis: str) -> Path:
    """The file of a shipped part or overlay; raises `ValueError` with the nearest one when there is none."""
    names = part_names(axis)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, 1, 0.5)
        known = f"the nearest is {near[0]!r}" if near else f"expected one of {', '.join(names)}"
        raise ValueError(f"no {axis} {name!r}; {known}.")
    return FOLDER / {**AXES, **OVERLAYS}[axis] / f"{name}.yaml"


def read_part(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; raises `ValueError` when it is missing, not valid or holds something else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected a YAML file, found that {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected sections such as 'task' and 'collect', found {values!r}.")
    return values
