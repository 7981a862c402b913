"""Texts that take long to make, kept between commands in a folder of the user's own, beside what Hugging Face keeps.

Not in the folders of runs and artefacts: those may come from anywhere, and what is read here decides what is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import atomic_write

MAX_FILES = 64

_is_on = False


@contextmanager
def texts_kept() -> Iterator[None]:
    """Within the block texts are kept, as the commands do; outside of such blocks none are written or read."""
    global _is_on
    before, _is_on = _is_on, True
    try:
        yield
    finally:
        _is_on = before


def home_folder() -> Path:
    """Where they are."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pdiff_hf" / "graphs"


def kept_text(key: str) -> str | None:
    """What was written under `key`; `None` when there is nothing, or it is damaged."""
    if not _is_on:
        return None
    try:
        digest, _, text = (home_folder() / key).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if digest == _digest(text) else None


def keep_text(key: str, text: str) -> None:
    """Keep `text` under `key`, a file name, where that is possible; of many, those written first go."""
    if not _is_on:
        return
    folder = home_folder()
    # The home of a user may be read-only or full; then the text is made again. Other processes may tidy up, too.
    with suppress(OSError):
        with atomic_write(folder / key) as temporary:
            temporary.write_text(f"{_digest(text)}\n{text}", encoding="utf-8")
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-MAX_FILES]:
            file.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
