import subprocess
import sys
from pathlib import Path

import pytest

import gpu

FOUND = {"imports": 9.0, "start": 0.5, "seconds": 0.02, "published": 3.0, "note": "as it is", "memory_gb": 1.25}
NAMES = {"accelerator": "Accelerator: there is none here", "cpu": "CPU: Example, 2 cores"}


def test_what_was_not_measured_says_so():
    rows = {"start": FOUND, "zoo": FOUND, "tails_32": {**FOUND, "published": None}, "networks": "stopped after 900 s"}
    page = gpu.make_page({"accelerator": {}, "cpu": rows}, NAMES, "full")
    accelerator, cpu = page.split("## CPU: Example, 2 cores")
    assert accelerator.count("| not measured |") == len(gpu.FULL)
    assert "| 1 000 perceptrons, 150 epochs | 20 ms | 3 s | 150× | 1.25 GB | as it is |" in cpu
    assert "| 100 ResNet-18 tails, 10 000 images of 32 pixels | 20 ms | – | – | 1.25 GB | as it is |" in cpu
    assert "| not measured | – | – | – | stopped after 900 s |" in cpu
    assert "| imports of all that is measured | 9 s |" in cpu


def test_a_cpu_gets_what_it_can_do():
    assert gpu.sizes("tails_224", "full", "cpu") is None
    assert gpu.sizes("tails_224", "full", "accelerator")["images"] == 10_000
    assert gpu.sizes("zoo", "full", "cpu") == gpu.FULL["zoo"][2]
    assert {row for row in gpu.FULL if gpu.sizes(row, "small", "cpu")} == gpu.FULL.keys() - {
        "tails_224",
        "whole_vit_base",
    }


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own():
    script = Path(gpu.__file__)
    options = "--scale small --device cpu --rows zoo function_autoencoder".split()
    run = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = {line.split(" | ")[0]: line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ")}
    assert lines["| 1 000 perceptrons, 150 epochs"][3].endswith("×")
    assert lines["| function-aware autoencoder of 500 perceptrons, 3 000 steps"][1].endswith("s")
