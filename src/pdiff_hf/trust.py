"""Code of the user's own that was named by whoever typed a command on this machine, and so may be run again unasked.

A parameter dataset names the factory of its networks, and its folder may come from anywhere. What is remembered is the
whole call that was typed, with its arguments and the file that has the code, in a file of the user's own: no folder
can make another call, or reach other code.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_write
from .own_code import is_file_reference, is_trusted

MAX_REMEMBERED = 1000


def remember(name: str, kwargs: Mapping[str, Any]) -> None:
    """Trust a call of a factory, as `"nets.py:mlp"` or `"nets:mlp"`, from now on, where that can be kept."""
    entry, known = _entry(name, kwargs), _read()
    if entry["file"] is None or entry in known:
        return
    try:
        with atomic_write(trusted_file()) as temporary:
            temporary.write_text(json.dumps([*known, entry][-MAX_REMEMBERED:], indent=1), encoding="utf-8")
    except OSError:
        # The home of a user may be read-only; the next command then asks.
        return


def may_run(name: str, kwargs: Mapping[str, Any], trusted: Sequence[str]) -> bool:
    """Whether a call may be made: by what is trusted in this command, see [`is_trusted`], or because it was typed."""
    return is_trusted(name, trusted) or is_remembered(name, kwargs)


def is_remembered(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether this call of a factory was typed before, with these arguments and the file that it would run now."""
    entry = _entry(name, kwargs)
    return entry["file"] is not None and entry in _read()


def _entry(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "kwargs": dict(kwargs), "file": _code_file(name)}


def _code_file(name: str) -> str | None:
    """The file that a reference names, or that of its module's topmost package; no code is run to find it."""
    source = name.rpartition(":")[0]
    if is_file_reference(name):
        return str(Path(source).resolve()) if Path(source).is_file() else None
    top = source.partition(".")[0]
    for folder in (*sys.path, str(Path.cwd())):
        found = importlib.machinery.PathFinder.find_spec(top, [folder]) if top else None
        if found is not None and found.origin:
            return str(Path(found.origin).resolve())
    return None


def trusted_file() -> Path:
    """Where it is remembered, beside the other files of the Hugging Face libraries."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pdiff_hf" / "trusted.json"


def _read() -> list[dict[str, Any]]:
    try:
        found = json.loads(trusted_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
