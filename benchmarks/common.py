"""What the benchmarks share: rates of the machine, synthetic datasets, stages measured in processes of their own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.machine import default_device, peak_memory, wait_for


def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
    """Best rate of a square float32 `torch.matmul`, in FLOP/s."""
    a, seconds = torch.randn(size, size), []
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def copy_rate(num_bytes: int = 2**28, repeats: int = 5) -> float:
    """Best rate of copying memory, in bytes/s of the source."""
    source, target = torch.zeros(num_bytes // 4), torch.zeros(num_bytes // 4)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begin)
    return num_bytes / min(seconds)


def fastest(function, repeats: int) -> float:
    """Seconds of the fastest of several calls after one that does not count, what the accelerator does included."""
    device = default_device()
    function()
    wait_for(device)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def flat_layout(values: int) -> ParameterLayout:
    return ParameterLayout((TensorSpec("weight", (values,), 0),))


def write_walk(folder: Path, rows: int, layout: ParameterLayout, directions: int = 8, **options: Any) -> None:
    """A dataset of synthetic checkpoints: a random walk in a few directions from N(0, 0.02), and a little noise.

    `options` are further ones of [`ParameterRecorder`].
    """
    generator = torch.Generator().manual_seed(0)
    size = layout.num_parameters
    start = 0.02 * torch.randn(size, generator=generator)
    basis = 2e-3 * torch.randn(directions, size, generator=generator)
    walk = 0.3 * torch.randn(rows, directions, generator=generator).cumsum(0)
    # Drawn once and shifted for every row: drawing takes as long as writing.
    noise = 1e-4 * torch.randn(size, generator=generator)
    with ParameterRecorder(layout, folder, **options) as recorder:
        for step, weights in enumerate(walk):
            vector = torch.addmv(start, basis.T, weights)
            recorder.record(vector.add_(noise.roll(7919 * step)), step=step)


def measure(stage: str, **options: Any) -> dict[str, Any]:
    """Run a stage in a new process: its seconds without imports, the peak of its resident memory in GB, its report.

    Of `stage="stages"`, `options` are those of several by name, which run one after another in the same process; peaks
    then are up to the end of each.
    """
    words = [sys.executable, str(Path(__file__).resolve()), stage, json.dumps(options, default=str)]
    run = subprocess.run(words, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{stage} {options} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def peak_gb() -> float:
    """Peak of this process's resident memory, in GB of 10^9 bytes."""
    return peak_memory() / 1e9


def run_stage(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """What [`measure`] does, in this process."""
    if stage == "stages":
        return {name: {**run_stage(name, of_stage), "peak_gb": peak_gb()} for name, of_stage in options.items()}
    # Imported here, so that a stage's memory is that of what it needs.
    if stage == "generate":
        from pdiff_hf.pipelines.sampling import load_pipeline
        from pdiff_hf.runs.generate import generate_networks

        begin = time.perf_counter()
        generate_networks(load_pipeline(options.pop("pipeline")), **options)
        return {"seconds": time.perf_counter() - begin}
    if stage == "evaluate":
        from pdiff_hf.runs.evaluate import evaluate_run
        from pdiff_hf.runs.folder import Run
        from pdiff_hf.runs.recipe import EvaluateConfig

        before, begin = peak_gb(), time.perf_counter()
        evaluate_run(Run(options["folder"]), EvaluateConfig(fine_tune=False, held_out=[]))
        return {"seconds": time.perf_counter() - begin, "imports_gb": before}
    from pdiff_hf.models.auto import AUTOENCODER, DENOISER
    from pdiff_hf.training.autoencoder import train_autoencoder
    from pdiff_hf.training.diffusion import train_diffusion

    before = peak_gb()
    config = options.pop("config")
    begin = time.perf_counter()
    report = {}
    if stage == "autoencoder":
        _, report = train_autoencoder(**options, config=AUTOENCODER.validate(config))
    else:
        train_diffusion(**options, config=DENOISER.validate(config))
    return {"seconds": time.perf_counter() - begin, "imports_gb": before, "report": report}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["autoencoder", "diffusion", "generate", "evaluate", "stages"])
    parser.add_argument("options", type=json.loads)
    arguments = parser.parse_args()
    found = run_stage(arguments.stage, arguments.options)
    print(json.dumps({**found, "peak_gb": peak_gb()}))
