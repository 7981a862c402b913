"""The machine a program runs on: processes of `accelerate launch`, accelerator, memory, threads."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from .locks import locked

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

# Others wait while the main process does what cannot be shared, such as training the base model.
TIMEOUT = timedelta(days=7)
# Steps that are timed on each number of threads.
THREAD_TRIALS = 4
# Whether an NVIDIA GPU may round the factors of float32 products to 11 bits (TF32), which is several times as fast.
# Training is as good with it; what is reported is to be that of the weights.
TF32 = {"training": True, "evaluation": False}


def describe_hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and the accelerators, if there are some.

    `device` is the name of the one that this process computes on, `cpu` without one. Of an accelerator,
    `device_memory_gb` (GiB) is all of its memory, where it tells, and `tf32` is [`TF32`], where it knows that.
    """
    import torch

    cpu = platform.processor()
    # On Linux, platform knows the architecture only.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count()
    device = default_device()
    name = device_name(device)
    of_device: dict[str, Any] = {"device": name}
    if memory := accelerator_memory(device):
        of_device["device_memory_gb"] = round(memory[1] / 2**30, 1)
    if device.type == "cuda":
        of_device["tf32"] = TF32
    return {
        "cpu": cpu or platform.machine(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": None if device.type == "cpu" else f"{torch.accelerator.device_count()} × {name}",
        **of_device,
    }


def device_name(device: torch.device) -> str:
    """What an accelerator calls itself, or else its type; `cpu` of a CPU."""
    import torch

    try:
        return device.type if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    # Of a kind of device without names.
    except AttributeError:
        return device.type


@contextmanager
def precision_of(purpose: Literal["training", "evaluation"]) -> Iterator[None]:
    """Float32 products and convolutions on an NVIDIA GPU as [`TF32`] says; afterwards as they were before.

    On other devices nothing changes.
    """
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    places = (matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]

    def allow(products: bool, convolutions: bool) -> None:
        # The older of PyTorch's two interfaces, which keeps both in step; the newer one does not.
        matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions

    allow(TF32[purpose], TF32[purpose])
    try:
        yield
    finally:
        allow(before[0] == "tf32", before[1] == "tf32")
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU; the CPU where `ACCELERATE_USE_CPU` says so."""
    # Here and below, because whoever only looks into a folder would wait for these libraries.
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def float64_device(device: torch.device | str) -> torch.device:
    """The device, or the CPU for one that lacks float64."""
    import torch

    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


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
    """Bytes that are free on an accelerator that tells, or else in the memory of the machine."""
    return found[0] if (found := accelerator_memory(device)) else psutil.virtual_memory().available


def accelerator_memory(device: torch.device) -> tuple[int, int] | None:
    """Free bytes and all bytes of an accelerator, `None` of a CPU and of one that does not tell."""
    import torch

    if device.type == "cpu":
        return None
    try:
        return torch.get_device_module(device).mem_get_info(device)
    # Of a kind of device that keeps no account.
    except (AttributeError, NotImplementedError):
        return None


def device_peak(device: torch.device | None = None, reset: bool = False) -> int | None:
    """Peak of the memory of tensors on an accelerator, in bytes; `None` of a CPU, and where nobody knows.

    It is that of the default device by default, since the program began, or since it was last `reset`.
    """
    import torch

    device = default_device() if device is None else device
    if device.type == "cpu":
        return None
    try:
        found = torch.accelerator.max_memory_allocated(device)
        if reset:
            torch.accelerator.reset_peak_memory_stats(device)
        return found
    # Of a kind of device that keeps no account.
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def wait_for(device: torch.device) -> None:
    """Let an accelerator finish what it was given, before a clock is read."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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

    # Without this, Accelerate would take every process of a launch for one alone.
    return PartialState(cpu=default_device().type == "cpu", timeout=TIMEOUT)


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


class ThreadChoice:
    """Lets a training find out by its own first steps how many threads compute it fastest.

    Where other programs are busy, threads wait for each other: steps of small networks then take several times as
    long on two of them as on one. On an accelerator, with one thread, and where `OMP_NUM_THREADS` says how
    many there are, nothing is tried. Sums over another number of threads are rounded in another way.

    Args:
        device (`torch.device` or `str`): Where the training computes.
        threads (`int`, *optional*): Taken without trying, as by the part of a training that came before.
    """

    def __init__(self, device: torch.device | str, threads: int | None = None):
        import torch

        self._all = torch.get_num_threads()
        self.taken = min(threads or self._all, self._all)
        self._seconds: dict[int, list[float]] = {}
        is_open = threads is None and torch.device(device).type == "cpu" and "OMP_NUM_THREADS" not in os.environ
        if is_open and self._all > 1:
            halves = [self._all >> shift for shift in range(self._all.bit_length())]
            self._seconds = {number: [] for number in halves}

    def __str__(self) -> str:
        return f"{self.taken} of {self._all} threads"

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the training, on the threads that are taken or on those that are tried."""
        open_trials = [number for number, seconds in self._seconds.items() if len(seconds) < THREAD_TRIALS]
        if not open_trials:
            with self._on(self.taken):
                yield
            return
        # By turns, so that what else the machine does meets all of them.
        number = min(open_trials, key=lambda number: len(self._seconds[number]))
        with self._on(number):
            begin = time.perf_counter()
            yield
            self._seconds[number].append(time.perf_counter() - begin)
        if len(open_trials) == 1 and len(self._seconds[number]) == THREAD_TRIALS:
            # What the first step prepares for all later ones does not count, nor what interrupts a single one.
            typical = {number: statistics.median(seconds[1:]) for number, seconds in self._seconds.items()}
            self.taken = min(typical, key=typical.__getitem__)

    @contextmanager
    def _on(self, number: int) -> Iterator[None]:
        import torch

        if number == self._all:
            yield
            return
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(self._all)
