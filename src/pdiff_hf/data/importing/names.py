"""Names of sources: what is on the Hub, and what should be on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PREFIX = "hub:"


def split_sources(
    sources: str | Path | Sequence[str | Path], all_revisions: bool = False
) -> tuple[list[str | Path], list[str]]:
    """Sources of [`import_checkpoints`] on this machine, and those on the Hub.

    Raises:
        ValueError: a name on the Hub is malformed or there twice, or all revisions of nothing are asked for.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    remote = [str(source) for source in sources if str(source).startswith(PREFIX)]
    if all_revisions and not remote:
        raise ValueError("expected a repository hub:user/name to take all revisions of, found none.")
    if twice := [source for source in remote if remote.count(source) > 1]:
        raise ValueError(f"expected every source once, found {twice[0]} twice.")
    for source in remote:
        parse_hub_source(source)
    return [source for source in sources if not str(source).startswith(PREFIX)], remote


def parse_hub_source(source: str) -> tuple[str, list[str]]:
    """Split `hub:user/name@rev1,rev2` into the repository and its revisions; `ValueError` when it is malformed."""
    repo_id, at, revisions = source.removeprefix(PREFIX).partition("@")
    names = [name.strip() for name in revisions.split(",")] if at else []
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id) or "" in names or len(set(names)) != len(names):
        raise ValueError(f"expected hub:user/name or hub:user/name@revision,…, each once, found {source!r}.")
    return repo_id, names
