"""Seconds and memory of what a row does, on the device of this process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pdiff_hf.machine import default_device, wait_for

# So many calls are timed, after one that does not count; the median is kept.
REPEATS = 5


def seconds_of(function: Callable[[], object], repeats: int = REPEATS, warm_up: bool = True) -> float:
    """Median seconds of calls, the device waited for before and after each."""
    device, seconds = default_device(), []
    for _ in range(repeats + warm_up):
        wait_for(device)
        begin = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[warm_up:])


def step_seconds(train: Callable[[int, Path], object], few: int, many: int, repeats: int = REPEATS) -> float:
    """Seconds of a step of a training: what more steps take, over their number, without beginning and end."""

    def of(steps: int) -> float:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                train(steps, Path(folder))

        return seconds_of(run, repeats)

    return max(0.0, of(many) - of(few)) / (many - few)


@contextmanager
def watched_memory(found: dict[str, Any]) -> Iterator[None]:
    """Note in `found["memory_gb"]` the most memory of an accelerator that was taken meanwhile; nothing on a CPU."""
    device = default_device()
    if device.type == "cpu":
        yield
        return
    torch.accelerator.reset_peak_memory_stats(device)
    yield
    found["memory_gb"] = torch.accelerator.max_memory_allocated(device) / 1e9
