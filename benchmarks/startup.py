"""What a command costs before its work: seconds and peak memory of asking, and of being refused.

    python benchmarks/startup.py           # half a minute

Each row is a process of its own, the fastest of three. Rows of libraries are there to compare with: a command that is
refused has imported none of those that do the work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

LIBRARIES = {
    "python -c pass": "pass",
    "import typer, rich": "import typer, rich",
    "import pydantic": "from pydantic import BaseModel",
    "import torch": "import torch",
    "all that a run imports": "import pdiff_hf.runs.stages, pdiff_hf.tasks.image_classification",
}
COMMANDS = (
    "--help",
    "recipes",
    "recipes digits-mlp",
    "run --help",
    "run",
    "run digits-mlp --out {full}",
    "run digits-mlp --out {new} --set diffusion.stp=3",
    "train {full} --out {new}",
    "import {new} --out {full}",
    "generate {full} --out {new}",
    "evaluate {full}",
    "ablate digits-mlp --axis noise=bogus --out {new}",
    "push dataset {full} user/name",
    "info {full}",
)
PEAK = "; from pdiff_hf.machine import peak_memory; print(peak_memory())"
COMMAND = """
import contextlib, io
from pdiff_hf.cli import main
said = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    main()
pass"""


def measure(code: str, *arguments: str, repeats: int) -> tuple[float, float]:
    """Seconds, and MB at the peak."""
    seconds, peaks = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        command = [sys.executable, "-c", code + PEAK, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begin)
        peaks.append(int(done.stdout.splitlines()[-1]) / 2**20)
    return min(seconds), max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = Table("what", "seconds", "of bare Python's", "peak MB", title="before the work")
    rows = {name: (code,) for name, code in LIBRARIES.items()}
    with tempfile.TemporaryDirectory() as temporary:
        full = Path(temporary) / "full"
        full.mkdir()
        (full / "file").write_text("", encoding="utf-8")
        for command in COMMANDS:
            arguments = [argument.format(full=full, new=Path(temporary) / "new") for argument in command.split()]
            rows[f"pdiff {command}"] = (COMMAND, *arguments)
        bare = None
        for name, (code, *arguments) in rows.items():
            seconds, peak = measure(code, *arguments, repeats=repeats)
            bare = bare or seconds
            table.add_row(name, f"{seconds:.2f}", f"{seconds / bare:.1f}", f"{peak:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
