"""The page of a pipeline: how fast it opens and answers, what many requests at once do, and whether memory grows.

    pdiff run digits-mlp --out runs/digits-mlp
    python benchmarks/app.py runs/digits-mlp                    # four minutes; needs Chromium for the first two rows

The page is served by a process of its own. Beside what the page takes to generate and plot stands the library alone,
which draws and judges the same networks without a page.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from gradio_client import Client
from rich.console import Console
from rich.table import Table

REPEATS = 5
PARALLEL = 20
GENERATIONS = 500
# Generations of a user, before the next one comes.
USER = 50
# Steps, truncation, guidance, seed and scheduler behind the number of networks; a condition would follow.
CONTROLS = (20, 1.0, 1.0)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def serve(run: Path, log: Path) -> Iterator[tuple[str, psutil.Process, float]]:
    """Address and process of the page, and the seconds until it is served."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pdiff_hf", "app", str(run), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while "Open http" not in log.read_text():
                if process.poll() is not None:
                    sys.exit(log.read_text()[-2000:])
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}/", psutil.Process(process.pid), time.perf_counter() - begin
        finally:
            process.terminate()
            process.wait()


def measure_browser(address: str, path: str) -> tuple[list[float], list[float]]:
    """Seconds to the first page in a browser with an empty cache, and from the click to 100 networks in the plot."""
    from playwright.sync_api import sync_playwright

    first, generated = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for seed in range(REPEATS):
            page = browser.new_context().new_page()
            begin = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("#pd-plot svg")
            first.append(time.perf_counter() - begin)
            page.get_by_label("Seed").fill(str(1000 + seed))
            begin = time.perf_counter()
            page.get_by_role("button", name="Generate").click()
            page.wait_for_function("document.querySelectorAll('circle[data-network]').length === 100")
            generated.append(time.perf_counter() - begin)
            page.context.close()
        browser.close()
    return first, generated


def measure_library(run: Path) -> list[float]:
    """Seconds to draw and judge 100 networks without a page."""
    from pdiff_hf.app.lab import Lab, Request
    from pdiff_hf.app.sources import open_source

    lab, seconds = Lab(open_source(str(run))), []
    lab.originals()
    for seed in range(REPEATS + 1):
        begin = time.perf_counter()
        lab.draw(Request(seed=seed))
        seconds.append(time.perf_counter() - begin)
    # The first call loads what later ones have.
    return seconds[1:]


def connect(address: str) -> Client:
    """A user of their own."""
    return Client(address, verbose=False, analytics_enabled=False)


def ask(client: Client, seed: int, networks: int = 100) -> bool:
    """Whether a request is answered with a plot."""
    answer = client.predict(networks, *CONTROLS, seed, "dpmsolver++", api_name="/generate")
    return f'data-network="{networks - 1}"' in str(answer)


def memory(process: psutil.Process) -> float:
    """Resident memory in MB."""
    return process.memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of digits-mlp")
    run = parser.parse_args().run
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    table = Table(box=None)
    for name in ("what", "found", "wanted", "beside"):
        table.add_column(name)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    with tempfile.TemporaryDirectory() as folder, serve(run, Path(folder, "log")) as (address, process, started):
        if browser is not None:
            first, generated = measure_browser(address, browser)
            library = statistics.median(measure_library(run))
            beside = f"{started:.1f} s from typing the command to its address"
            table.add_row("first page, s", spread(first), "3", beside)
            table.add_row("100 networks in the plot, s", spread(generated), "3", f"{library:.2f} s without a page")
        begin = time.perf_counter()
        with ThreadPoolExecutor(PARALLEL) as pool:
            answered = sum(pool.map(lambda seed: ask(connect(address), seed), range(PARALLEL)))
        seconds = time.perf_counter() - begin
        table.add_row(f"{PARALLEL} users at once, answered", str(answered), str(PARALLEL), f"{seconds:.1f} s for all")
        grown = [memory(process)]
        for number in range(GENERATIONS):
            if number % USER == 0:
                client = connect(address)
            if not ask(client, 5000 + number):
                sys.exit(f"request {number} was not answered")
            if number + 1 in (100, 300, GENERATIONS):
                grown.append(memory(process))
        text = " → ".join(f"{value:.0f}" for value in grown)
        table.add_row(f"memory before and after 100, 300, {GENERATIONS} generations, MB", text, "flat", "")
    Console(width=150).print(table)


def spread(values: list[float]) -> str:
    """The median, and all of it."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
