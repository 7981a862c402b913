"""Cells of the paper's matrix: which one a run belongs to, what the paper reports for it, and which are left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pdiff_hf.runs.recipe_parts import find_part, part_names
from pdiff_hf.strict_yaml import read_mapping


@dataclass(frozen=True)
class Cell:
    """A network, what is generated of it, and the data; names of recipe parts, `None` where there is no such part."""

    network: str | None
    selection: str | None
    data: str | None

    @property
    def recipe(self) -> str:
        """Name of the cell's recipe."""
        return f"{self.network}-{self.selection}-{self.data}"


@cache
def paper() -> Mapping[str, Any]:
    """The paper's settings and numbers, `paper.yaml`."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))


def paper_numbers(cell: Cell) -> tuple[float, float, float] | None:
    """The paper's best original, average and generated network for a cell, fractions; `None` where it has none."""
    found = paper()["numbers"].get(cell.selection, {}).get(cell.network, {}).get(cell.data)
    return None if found is None else tuple(round(value / 100, 6) for value in found)


def paper_cells() -> list[Cell]:
    """Every cell of the paper's matrix, in its order."""
    return [
        Cell(network, selection, data)
        for selection, axes in paper()["matrix"].items()
        for network in axes["networks"]
        for data in axes["data"]
    ]


def order_of(cell: Cell) -> tuple[int, str]:
    """Sorts cells as the paper's matrix has them; others come after it."""
    cells = paper_cells()
    return (cells.index(cell) if cell in cells else len(cells), str(cell))


def missing_cells(covered: Iterable[Cell]) -> list[Cell]:
    """Cells of the paper's matrix that are not among the covered ones."""
    covered = set(covered)
    return [cell for cell in paper_cells() if cell not in covered]


def find_cell(recipe: Mapping[str, Any]) -> Cell:
    """The cell of a recipe's sections `task`, `base_model` and `collect`."""
    wanted = recipe["base_model"]
    # timm names the pretrained weights behind a dot.
    name = wanted["name"].partition(".")[0] if wanted["library"] == "timm" else wanted["name"]
    networks = [
        part
        for part, values in _parts("network")
        if (values["base_model"]["library"], values["base_model"]["name"]) == (wanted["library"], name)
    ]
    select = recipe["collect"]["select"]
    selections = [part for part, values in _parts("selection") if values["collect"]["select"] == select]
    dataset = recipe["task"]["dataset"]
    # A local copy has the name of its folder.
    data = [part for part, values in _parts("data set") if values.get("task", {}).get("dataset") == dataset] or [
        part for part, _ in _parts("data set") if _plain(part) == _plain(Path(dataset).name)
    ]
    return Cell(*(next(iter(found), None) for found in (networks, selections, data)))


@cache
def _parts(axis: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, read_mapping(find_part(name, axis))) for name in part_names(axis)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
