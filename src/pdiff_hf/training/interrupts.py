"""Interrupts: SIGTERM and SIGINT end a training at the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import torch
from accelerate import Accelerator

from ..terminal import SECONDS_OF_COPIES

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# About how often processes ask each other whether to stop; never in the middle of a step.
SECONDS_BETWEEN_VOTES = 1.0
MAX_STEPS_BETWEEN_VOTES = 1000


class TrainingInterrupted(SystemExit):
    """A signal has stopped a training, and its checkpoint is written. The exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)


class StopRequest:
    """While this context is entered, a signal only asks for a stop; a second Ctrl-C interrupts at once.

    In other threads than the main one, signals are left as they are.

    Args:
        accelerator ([`accelerate.Accelerator`]): Its processes stop together.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._received: int | None = None
        self._received_at = 0.0
        self._handlers: dict[int, object] = {}
        self._steps, self._interval, self._since = 0, 1, 0.0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self._since = time.monotonic()
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._received is not None and error_type is None:
            # The training was over before the signal could stop it; whatever comes next is stopped.
            signal.raise_signal(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at > SECONDS_OF_COPIES:
            raise KeyboardInterrupt

    def agreed(self) -> int | None:
        """The signal to stop by, the same on all processes; to be called after every step.

        With several processes it takes one small reduction a second, or one a step where steps take longer.
        """
        if self._accelerator.num_processes == 1:
            return self._received
        self._steps += 1
        if self._steps < self._interval:
            return None
        seconds = (time.monotonic() - self._since) / self._steps
        own = torch.tensor([*(float(self._received == number) for number in SIGNALS), seconds])
        *votes, seconds = self._accelerator.reduce(own.to(self._accelerator.device), "mean").tolist()
        self._steps, self._since = 0, time.monotonic()
        self._interval = min(max(1, int(SECONDS_BETWEEN_VOTES / seconds)), MAX_STEPS_BETWEEN_VOTES)
        return next((number for number, vote in zip(SIGNALS, votes, strict=True) if vote), None)
