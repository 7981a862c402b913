"""Python and `accelerate launch` in processes of their own."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from pdiff_hf.locks import FolderLock


def run(*arguments, **environment):
    """Exit code and output of a command."""
    result = subprocess.run(
        [str(a) for a in arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return result.returncode, result.stdout + result.stderr


def launch_two(*arguments, on_cpu=True):
    """Run a script, or `-m module`, with its arguments in two processes: on the CPU over gloo, or on two cards."""
    accelerate = Path(sys.executable).with_name("accelerate")
    options = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    return run(accelerate, *options.split(), *arguments, ACCELERATE_USE_CPU=str(on_cpu).lower())


@contextmanager
def held_elsewhere(folder):
    """A process that holds the lock of `folder` until it is killed in the end."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        FolderLock(folder)
        os.write(write, b"held")
        signal.pause()
    try:
        assert os.read(read, 4) == b"held"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
