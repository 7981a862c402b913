"""What an import costs beside reading the same files with `torch.load`: time, and memory above that of the libraries.

    python benchmarks/importing.py            # 10 networks of 45 MB as training scripts save them, 2 GB of disk

All read every file once, in a process of their own, from the page cache. `read` gives every tensor its name in the
network and sums its values. The import also hashes and checks every value and writes compressed Parquet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pdiff_hf.machine import peak_memory

NAME = "resnet18"


def write_files(folder: Path, number: int) -> None:
    import timm

    folder.mkdir()
    for seed in range(number):
        torch.manual_seed(seed)
        model = timm.create_model(NAME)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
        torch.save({"state_dict": model.state_dict(), "epoch": seed}, folder / f"epoch_{seed}.pth.tar")


def stage(what: str, folder: Path) -> None:
    """Import the libraries, then do `what`; prints seconds, and megabytes above what the libraries take."""
    import timm  # noqa: F401

    from pdiff_hf.base_model import BaseModel
    from pdiff_hf.data.importing.architecture import Architecture
    from pdiff_hf.data.importing.archive import read_archive
    from pdiff_hf.data.importing.importer import import_checkpoints

    # Once for all files.
    architecture = Architecture(BaseModel.timm(NAME))
    before, begin = peak_memory(), time.perf_counter()
    if what == "torch.load":
        for file in sorted(folder.iterdir()):
            torch.load(file, weights_only=True)
    elif what == "read":
        for file in sorted(folder.iterdir()):
            state = architecture.named(read_archive(file, str(file)), str(file))
            # They are mapped from the file; now every value is read.
            sum(tensor.sum().item() for tensor in state.values())
    elif what == "import":
        with tempfile.TemporaryDirectory() as out:
            import_checkpoints(folder, Path(out) / "ds", base_model=BaseModel.timm(NAME), progress=False)
    print(time.perf_counter() - begin, (peak_memory() - before) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        return stage(arguments.stage, arguments.folder)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "nets"
        write_files(folder, arguments.number)
        size = max(file.stat().st_size for file in folder.iterdir()) / 1e6
        found = {}
        for what in ("torch.load", "read", "import"):
            options = [sys.executable, __file__, "--stage", what, "--folder", str(folder)]
            runs = [subprocess.run(options, capture_output=True, text=True, check=True).stdout for _ in range(2)]
            found[what] = min(tuple(map(float, run.split())) for run in runs)
    for what, (seconds, memory) in found.items():
        print(
            f"{what}: {seconds:.2f} s, {memory:.0f} MB above the libraries, {memory / size:.1f} files of {size:.0f} MB"
        )
    for what in ("read", "import"):
        print(f"{what} / torch.load: {found[what][0] / found['torch.load'][0]:.1f}")


if __name__ == "__main__":
    main()
