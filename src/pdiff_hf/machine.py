"""The machine a program runs on: processes of `accelerate launch`, accelerator, memory."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .locks import locked

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

# Others wait while the main process does what cannot be shared, such as training the base model.
TIMEOUT = timedelta(days=7)


def describe_hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and the accelerator, if there is one."""
    import torch

    cpu = platform.processor()
    # On Linux, platform knows the architecture only.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count()
    accelerator = default_device().type
    if accelerator == "cuda":
        accelerator = torch.cuda.get_device_name()
    return {
        "cpu": cpu or platform.machine(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": None if accelerator == "cpu" else f"{torch.accelerator.device_count()} × {accelerator}",
    }


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    # Here and below, because whoever only looks into a folder would wait for these libraries.
    import torch

    return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def peak_memory() -> int:
    """Peak of this process's resident memory up to now, in bytes.

    On Linux not by `ru_maxrss`, which a new program takes over from the process that has started it.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 2**10
    # Kilobytes, on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or else in the memory of the machine."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def return_large_blocks() -> None:
    """Let freed blocks of 4 MiB or more go back to the system, with glibc (`M_MMAP_THRESHOLD` in mallopt(3)).

    By default, after the first blocks of up to 32 MB the next ones come from the heap, and stay there when they are
    freed: a few hundred MB of a training whose tensors are a few MB each.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**22)


def process_state() -> PartialState:
    """The processes of `accelerate launch`, or this one alone. Where there is no accelerator, they speak over gloo.

    Not an `Accelerator`, whose first one fixes the precision of all later ones of the program.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without this, Accelerate would take every process of a launch for one alone.
    is_cpu = default_device().type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=is_cpu, timeout=TIMEOUT)


def one_writer(argument: str, beside: bool = False) -> Callable[[Callable], Callable]:
    """Let a function hold [`locked_together`] of the folder that it is given as `argument`."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locking(*args: Any, **kwargs: Any) -> Any:
            with locked_together(signature.bind(*args, **kwargs).arguments[argument], beside):
                return function(*args, **kwargs)

        return locking

    return decorate


@contextmanager
def locked_together(folder: str | Path, beside: bool = False) -> Iterator[None]:
    """[`locked`] for all processes of `accelerate launch`, which have to call: the main one holds the lock.

    Raises:
        ValueError: somebody else is writing to the folder; all processes raise it.
    """
    state = process_state()
    with ExitStack() as held:
        problems: list[str | None] = [None]
        if state.is_main_process:
            try:
                held.enter_context(locked(folder, beside))
            except ValueError as error:
                problems = [str(error)]
        if state.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(problems)
        if problems[0] is not None:
            raise ValueError(problems[0])
        yield
