"""Run all benchmarks and write what they print to `benchmarks/RESULTS.md`.

python benchmarks/run_all.py                                  # embedded and synthetic data
python benchmarks/run_all.py --images PATH                    # the end-to-end run is ResNet-18 on these images
python benchmarks/run_all.py --dataset runs/mine/dataset      # or on a parameter dataset that is there already

Left out: hub_io, and studies of quality, which need finished runs (denoiser, functional, generator_seeds, selection,
truncation).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import torch

from common import copy_rate, matmul_rate
from pdiff_hf.machine import describe_hardware

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("pdiff-hf", "torch", "diffusers", "accelerate", "datasets", "timm")
# A benchmark that takes longer than that is stopped; the others go on.
TIMEOUT_SECONDS = 600


def commands(end_to_end: list[str]) -> list[list[str]]:
    """Scripts with their arguments, the most important ones first."""
    return [
        ["end_to_end.py", *end_to_end],
        ["sampling.py"],
        ["autoencoder.py"],
        ["diffusion.py"],
        ["scaling.py", "--whole", "resnet18"],
        ["scaling.py", "--whole", "vit_base", "--num_samples", "2"],
        ["scaling.py"],
        ["evaluation.py", "--cases", "resnet18", "mlp", "--images", "2000"],
        ["dataset_io.py", "--rows", "500"],
        ["processes.py"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="see end_to_end.py")
    parser.add_argument("--dataset", type=Path, help="see end_to_end.py")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    arguments = parser.parse_args()
    end_to_end = ["--images", arguments.images] if arguments.images else []
    end_to_end += ["--dataset", str(arguments.dataset)] if arguments.dataset else []
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    parts = [
        "# What the benchmarks measured\n",
        f"`make bench`, {datetime.date.today().isoformat()}. "
        f"{describe_hardware()['cpu']}, {torch.get_num_threads()} threads; "
        f"torch.matmul {matmul_rate() / 1e9:.0f} GFLOP/s, copy {copy_rate() / 1e9:.1f} GB/s.\n{versions}.\n",
    ]
    failed, begun = [], time.perf_counter()
    for command in commands(end_to_end):
        # The folder of somebody's images says nothing to others.
        shown = ["PATH" if word in end_to_end and not word.startswith("--") else word for word in command]
        name = " ".join(shown)
        print(f"{name} …", flush=True)
        begin = time.perf_counter()
        try:
            words = [sys.executable, str(FOLDER / command[0]), *command[1:]]
            run = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
            text = run.stdout.rstrip() if run.returncode == 0 else f"failed:\n{run.stderr[-1000:].rstrip()}"
            failed += [name] if run.returncode else []
        except subprocess.TimeoutExpired:
            text = f"stopped after {TIMEOUT_SECONDS} s"
            failed.append(name)
        print(text, flush=True)
        parts.append(f"## `{name}`\n\n{time.perf_counter() - begin:.0f} s\n\n```text\n{text}\n```\n")
    parts.append(f"All of it took {(time.perf_counter() - begun) / 60:.1f} minutes.\n")
    arguments.output.write_text("\n".join(parts), encoding="utf-8")
    print(f"{arguments.output} written")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
