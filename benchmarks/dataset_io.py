"""How fast a parameter dataset is read, and what memory and disk a large one takes.

    python benchmarks/dataset_io.py           # speed, 4000 x 25000 values (0.4 GB), under a minute
    python benchmarks/dataset_io.py --large   # memory and size, 50 x 10^7 values, some minutes, 5 GB of disk
    python benchmarks/dataset_io.py --large --values 25000000 --rows 20   # stored as chunk rows

Speed is relative to `numpy.load` of the same bytes into memory, in the same run, the best of several, all files in the
page cache. Values are random walks that begin at N(0, 0.02), which compress like trained weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import copy_rate
from pdiff_hf.data.dataset import load_parameter_dataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.machine import peak_memory


def make_layout(values: int) -> ParameterLayout:
    return ParameterLayout((TensorSpec("weight", (values,), 0),))


def random_walk(rows: int, values: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    vector = 0.02 * rng.standard_normal(values, dtype=np.float32)
    for _ in range(rows):
        yield vector
        vector += 0.001 * rng.standard_normal(values, dtype=np.float32)


def seconds(function: Callable, repeats: int) -> float:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        found.append(time.perf_counter() - start)
        del result
    return min(found)


def measure_speed(folder: Path, rows: int, values: int, repeats: int) -> Table:
    layout = make_layout(values)
    vectors = np.stack([vector.copy() for vector in random_walk(rows, values)])
    np.save(folder / "vectors.npy", vectors)
    save_parameter_dataset(torch.from_numpy(vectors), layout, folder / "dataset")
    loaded, _ = load_parameter_dataset(folder / "dataset")
    cached = datasets.load_dataset(str(folder / "dataset"), split="train", cache_dir=str(folder / "cache"))
    stream, _ = load_parameter_dataset(folder / "dataset", streaming=True)
    for row, vector in enumerate(vectors):
        torch.save({"weight": torch.from_numpy(vector).clone()}, folder / f"{row:05d}.pth")
    files = sorted(folder.glob("*.pth"))
    ways = {
        "one .pth file per checkpoint, the published code's way": lambda: torch.stack(
            [torch.load(file, weights_only=True)["weight"] for file in files]
        ),
        "numpy.load": lambda: torch.from_numpy(np.load(folder / "vectors.npy")),
        "loaded rows, dataset_vectors (with the check for NaN)": lambda: dataset_vectors(loaded, layout),
        "loaded rows, dataset[:]": lambda: loaded[:]["parameters"],
        "Arrow cache of datasets, dataset_vectors": lambda: dataset_vectors(cached, layout),
        "Arrow cache of datasets, dataset[:]": lambda: cached.with_format("torch")[:]["parameters"],
        "Parquet, load_parameter_dataset and dataset_vectors": lambda: dataset_vectors(
            *load_parameter_dataset(folder / "dataset")
        ),
        "Parquet, streamed row by row": lambda: sum(1 for _ in stream),
    }
    copy = copy_rate()
    title = f"{rows} x {values} float32; the Arrow cache must reach 0.5 of numpy.load"
    table = Table("all rows as torch", "GB/s", "relative to numpy.load", "share of a copy's rate", title=title)
    times = {name: seconds(way, repeats) for name, way in ways.items()}
    for name, taken in times.items():
        rate = vectors.nbytes / taken
        table.add_row(name, f"{rate / 1e9:.2f}", f"{times['numpy.load'] / taken:.2f}", f"{rate / copy:.0%}")
    return table


def write(folder: Path, rows: int, values: int) -> None:
    with ParameterRecorder(make_layout(values), folder) as recorder:
        for step, vector in enumerate(random_walk(rows, values)):
            recorder.record(torch.from_numpy(vector), step=step)


def stream(folder: Path, rows: int, values: int) -> None:
    dataset, _ = load_parameter_dataset(folder, streaming=True)
    steps = [row["step"].item() for row in dataset if row["parameters"].shape == (values,)]
    if steps != list(range(rows)):
        raise SystemExit(f"expected {rows} rows of {values} values, found the steps {steps}.")


def measure_memory(folder: Path, rows: int, values: int) -> Table:
    table = Table("50 x 10^7: at most 1.5 GB, 0.9", "", title=f"{rows} x {values} float32")
    for part in ("write", "stream"):
        command = [sys.executable, __file__, "--part", part, "--folder", folder, "--rows", rows, "--values", values]
        start = time.perf_counter()
        found = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
        table.add_row(f"{part}: peak memory of the process, GB", found.strip())
        table.add_row(f"{part}: seconds, with making the values", f"{time.perf_counter() - start:.0f}")
    sizes = [file.stat().st_size for file in (folder / "data").iterdir()]
    table.add_row("Parquet, relative to raw float32", f"{sum(sizes) / (4 * rows * values):.3f}")
    table.add_row("largest of the shards, GB", f"{max(sizes) / 1e9:.2f} of {len(sizes)}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="measure memory and size")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--values", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=["write", "stream"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        {"write": write, "stream": stream}[args.part](args.folder, args.rows, args.values)
        print(f"{peak_memory() / 1e9:.2f}")
        sys.exit()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        if args.large:
            found = measure_memory(Path(temporary) / "dataset", args.rows or 50, args.values or 10**7)
        else:
            found = measure_speed(Path(temporary), args.rows or 4000, args.values or 25000, args.repeats)
        Console().print(found)
