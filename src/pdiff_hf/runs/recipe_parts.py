"""Files that recipes are composed of: listed, found and read."""

from __future__ import annotations

import difflib
from pathlib import Path

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
