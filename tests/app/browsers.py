"""A browser of this machine, and the page served to it by a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

# Of a machine under load, imports included.
SECONDS = 120


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@contextmanager
def served(*arguments, log):
    """The address of a page that `pdiff app` serves, and the process that does."""
    port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pdiff_hf", "app", *map(str, arguments), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            end = time.monotonic() + SECONDS
            while "Open http" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the page is not served:\n{log.read_text()[-4000:]}")
                time.sleep(0.1)
            address = f"http://127.0.0.1:{port}/"
            urllib.request.urlopen(address, timeout=30).read()
            yield address, process
        finally:
            process.terminate()
            process.wait(timeout=30)
