"""The stages of a run as a table that is drawn again as they go on, for a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..progress import watched_by
from .app import console

DRAWN_PER_SECOND = 4


@dataclass
class _Row:
    progress: str = ""
    began: float | None = None
    seconds: float | None = None
    found: str = ""


class StageTable:
    """A watcher (`pdiff_hf.progress.Watcher`) of one run that draws what it is told."""

    def __init__(self, folder: Path):
        from ..runs.folder import STAGES

        self.folder = folder
        self.rows = {stage: _Row() for stage in STAGES}
        self._running: _Row | None = None

    def began(self, stage: str) -> None:
        """See `Watcher`."""
        self._running = self.rows[stage] = _Row("running", time.perf_counter())

    def advanced(self, what: str, done: int, total: int | None, detail: str) -> None:
        """See `Watcher`."""
        # Before the first stage begins, a base model may be prepared.
        if self._running is not None:
            share = f"{done / total:4.0%}  " if total else ""
            self._running.progress = f"{share}{done}/{total}" if total else f"{done}"
            self._running.found = ", ".join(text for text in (what, detail) if text)

    def ended(self, stage: str, seconds: float | None) -> None:
        """See `Watcher`."""
        from ..runs.folder import Run
        from ..runs.found import found_by

        found = found_by(Run(self.folder), stage)
        progress = "done" if seconds is not None else "done before"
        self.rows[stage], self._running = _Row(progress, None, seconds, found), None

    def stopped(self) -> None:
        """Say of the stage that was running that it is not."""
        if self._running is not None:
            self._running.seconds = time.perf_counter() - self._running.began
            self._running.progress, self._running = f"stopped {self._running.progress}".strip(), None

    def __rich__(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("stage", no_wrap=True)
        table.add_column("progress", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("found", overflow="fold")
        # Rich draws from another thread.
        for stage, row in list(self.rows.items()):
            seconds = row.seconds
            if seconds is None and row.began is not None:
                seconds = time.perf_counter() - row.began
            style = "bold" if row is self._running else None if row.progress else "dim"
            cells = (stage, row.progress, "" if seconds is None else f"{seconds:.1f}", row.found)
            table.add_row(*map(escape, cells), style=style)
        return Group(Text(str(self.folder), overflow="fold"), table)


def is_live(as_json: bool) -> bool:
    """Whether there is a terminal to draw on: not of NO_COLOR, TERM=dumb, or of another process than the first."""
    plain = as_json or console.quiet or console.is_dumb_terminal or "NO_COLOR" in os.environ
    return console.is_terminal and not plain


@contextmanager
def live_stages(folder: Path, as_json: bool) -> Iterator[None]:
    """Within it, the stages of the run in `folder` are a table where there is a terminal; lines are printed above."""
    if not is_live(as_json):
        yield
        return
    table = StageTable(folder)
    with Live(table, console=console, refresh_per_second=DRAWN_PER_SECOND), watched_by(table):
        try:
            yield
        finally:
            table.stopped()
