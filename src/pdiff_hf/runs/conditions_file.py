"""Files of conditions, a network each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import errors_of, parse_json


def read_conditions(file: str | Path) -> list[dict[str, Any]]:
    """The conditions of a file of JSON lines, one a line; empty lines are none.

    Raises:
        ValueError: there is no such file, no condition in it, or a line is no JSON object; it is named.
    """
    path, found = Path(file), []
    if not path.is_file():
        raise ValueError(f"expected a file of conditions, one as JSON on every line, found none at {path}.")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        with errors_of(f'{path}: line {number} is no condition as JSON, such as {{"classes": ["cat"]}}'):
            found.append(parse_json(line))
        if not isinstance(found[-1], dict):
            raise ValueError(f"{path}: line {number}: expected a condition {{kind: value}}, found {line:.200}.")
    if not found:
        raise ValueError(f"{path}: expected a condition on every line, found none.")
    return found
