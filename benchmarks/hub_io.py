"""What pushing a parameter dataset to a Hub and streaming it from there cost, over the loopback.

    python benchmarks/hub_io.py                    # 300 x 2048 values, seconds
    python benchmarks/hub_io.py --large            # 50 x 10^7 values, minutes, 5 GB of disk and 4 GB of memory

The Hub is that of the tests; the clients are the real ones, each step in a process of its own. The Hub keeps what it
is given in the memory of this process, which is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.layout import ParameterLayout, TensorSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hub"))
from loopback import LoopbackHub

REPO, TOKEN = "user/params", "hf_TokenOfTheBenchmark"

STEPS = {
    "push": "from pdiff_hf.data.push import push_dataset; push_dataset(sys.argv[1], repo)",
    "load": "from pdiff_hf import load_parameter_dataset; ds, _ = load_parameter_dataset(repo); ds['parameters'][:]",
    "stream": """
from pdiff_hf import load_parameter_dataset
rows, _ = load_parameter_dataset(repo, streaming=True)
print(sum(float(row["parameters"][0]) for row in rows), file=sys.stderr)
""",
}
MEASURED = """
import json, sys, time
import pdiff_hf, torch, datasets
from pdiff_hf.machine import peak_memory
repo, before, start = "{repo}", peak_memory(), time.perf_counter()
{code}
found = {{"seconds": time.perf_counter() - start, "peak_mb": peak_memory() / 2**20, "imports_mb": before / 2**20}}
print(json.dumps(found))
"""


def measure(step: str, folder: Path, url: str) -> dict[str, float]:
    hub = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / f"home-{step}"), "NO_PROXY": "127.0.0.1"}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    code = MEASURED.format(repo=REPO, code=STEPS[step])
    command = [sys.executable, "-c", code, str(folder / "dataset")]
    run = subprocess.run(command, env={**os.environ, **hub, **quiet}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def write_dataset(folder: Path, rows: int, values: int) -> None:
    """A random walk that begins at N(0, 0.02), which compresses like trained weights."""
    rng = np.random.default_rng(0)
    vector = 0.02 * rng.standard_normal(values, dtype=np.float32)
    with ParameterRecorder(ParameterLayout((TensorSpec("weight", (values,), 0),)), folder) as recorder:
        for step in range(rows):
            recorder.record(torch.from_numpy(vector), step=step)
            vector += 0.001 * rng.standard_normal(values, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="50 x 10^7 values instead of 300 x 2048")
    args = parser.parse_args()
    rows, values = (50, 10**7) if args.large else (300, 2048)
    table = Table("step", "seconds", "peak memory, MB", "of it imports, MB", title=f"{rows} x {values} values")
    with tempfile.TemporaryDirectory() as temporary, LoopbackHub() as hub:
        folder = Path(temporary)
        hub.tokens = {TOKEN: "write"}
        write_dataset(folder / "dataset", rows, values)
        stored = sum(file.stat().st_size for file in (folder / "dataset" / "data").iterdir())
        for step in ("push", "stream") if args.large else ("push", "load", "stream"):
            found = measure(step, folder, hub.url)
            table.add_row(step, f"{found['seconds']:.1f}", f"{found['peak_mb']:.0f}", f"{found['imports_mb']:.0f}")
    Console().print(table)
    print(f"Files take {stored / (4 * rows * values):.2f} of the raw float32.")


if __name__ == "__main__":
    main()
