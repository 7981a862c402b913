"""`pdiff doctor`: what of this machine and its packages matters, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from packaging.requirements import Requirement

from .app import AsJson, app, line_printer, print_json

PACKAGE = "pdiff-hf"
# Extras of those who work on the package itself.
NOT_FOR_USERS = ("dev", "docs")
# Nobody waits longer for an answer of the Hub.
SECONDS = 5.0


@dataclass(frozen=True)
class Package:
    """A package that ours asks for."""

    name: str
    wanted: str
    """Its versions, as pyproject has them."""
    extra: str | None
    """Whose extra it is, `None` for one that is always needed."""
    found: str | None
    """The version that is installed."""
    fits: bool

    @property
    def line(self) -> str:
        """What is to be said of it."""
        if self.found is None:
            return f"missing; pip install '{PACKAGE}[{self.extra}]'" if self.extra else f"missing; {self.remedy}"
        return self.found if self.fits else f"{self.found}, {self.wanted} is needed; {self.remedy}"

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install '{self.name}{self.wanted}'"


def packages() -> Iterator[Package]:
    """Those that ours needs, and those of its extras; an extra that is not installed is no fault."""
    for text in metadata.requires(PACKAGE) or ():
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        extra = marker.partition("extra == ")[2].strip("'\" ") or None
        if extra in NOT_FOR_USERS:
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = None
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        yield Package(requirement.name, str(requirement.specifier), extra, found, fits)


def hub_state() -> dict[str, Any]:
    """The Hub as this machine sees it: its address, the cache, and who is logged in; tokens are never part of it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    found = {
        "endpoint": constants.ENDPOINT,
        "cache": str(cache),
        "free_gb": round(shutil.disk_usage(there).free / 2**30),
    }
    if get_token() is None:
        return {**found, "login": "not logged in; hf auth login"}
    if constants.HF_HUB_OFFLINE:
        return {**found, "login": "unknown: HF_HUB_OFFLINE is set"}
    try:
        # `HfApi.whoami` waits for as long as it takes.
        answer = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(), timeout=SECONDS)
    except Exception as error:  # whatever the connection ends in
        return {**found, "login": f"unknown: the Hub cannot be reached ({type(error).__name__})"}
    if answer.status_code == 401:
        return {**found, "login": "the token is not valid; hf auth login"}
    if answer.status_code != 200:
        return {**found, "login": f"unknown: the Hub answered {answer.status_code}"}
    return {**found, "login": str(answer.json().get("name"))}


def machine_state() -> dict[str, Any]:
    """Processor, memory, threads and accelerators, as far as they can be told without torch."""
    import psutil

    found: dict[str, Any] = {"memory_free_gb": round(psutil.virtual_memory().available / 2**30, 1)}
    found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS")
    try:
        import torch

        from ..machine import describe_hardware
    except ImportError as error:
        return {**found, "torch": f"cannot be imported: {' '.join(str(error).split())}"}
    return {**describe_hardware(), **found, "threads": torch.get_num_threads()}


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print versions, threads, memory and Hub login, and what is missing; exit code 2 if it is needed."""
    line = line_printer(as_json)
    own = metadata.version(PACKAGE)
    needed = list(packages())
    state = {"machine": _told(machine_state), "hub": _told(hub_state)}
    line(f"{PACKAGE} {own}, Python {platform.python_version()}, {platform.platform()}")
    for package in needed:
        line(f"  {package.name:<36}{package.line}")
    for name, values in state.items():
        line(f"{name}:")
        for key, value in values.items():
            line(f"  {key:<36}{'–' if value is None else value}")
    broken = [package for package in needed if not package.fits and (package.extra is None or package.found)]
    print_json(
        {
            "pdiff_hf": own,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {package.name: package.found for package in needed},
            "broken": [package.name for package in broken],
            **state,
        },
        as_json,
    )
    for package in broken:
        line(f"{package.name}: {package.line}")
    if broken or "torch" in state["machine"]:
        raise typer.Exit(2)
    line("Everything that is needed is there.")


def _told(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What could be found out; a package that is missing is no reason to say nothing of the rest."""
    try:
        return ask()
    except ImportError as error:
        return {"unknown": " ".join(str(error).split())}
