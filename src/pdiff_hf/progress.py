"""How far work has come: bars of tqdm, or calls of a watcher that shows all of it in one place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm.auto import tqdm


class Watcher(Protocol):
    """What is told of the stages of a run and of the steps in them."""

    def began(self, stage: str) -> None:
        """A stage has begun."""

    def advanced(self, what: str, done: int, total: int | None, detail: str) -> None:
        """Of `what`, `done` of `total` steps are done; `detail` is what is known on the way, such as a loss."""

    def ended(self, stage: str, seconds: float | None) -> None:
        """A stage is complete after `seconds`, or was so before."""


_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def current_watcher() -> Watcher | None:
    """The watcher of the code that runs, if it has one."""
    return _WATCHER.get()


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Within it, `watcher` is told, and no bar is drawn."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class ProgressBar(tqdm):
    """A bar of tqdm, which tells a watcher instead of drawing itself where there is one."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._watcher = current_watcher()
        if self._watcher is not None:
            # Also what tqdm writes without `display`, such as the end of a line.
            kwargs["file"] = io.StringIO()
        super().__init__(*args, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the bar, or tell the watcher."""
        if self._watcher is None:
            return super().display(*args, **kwargs)
        self._watcher.advanced(self.desc.removesuffix(": "), self.n, self.total, self.postfix or "")
