"""What an accelerator is worth: nine workloads beside the method as published, on the same device in the same run.

    python benchmarks/gpu.py                             # all rows on both devices; writes RESULTS_GPU.md
    python benchmarks/gpu.py --rows tails_32 zoo         # these rows, printed only
    python benchmarks/gpu.py --scale small --device cpu  # minutes on two cores: sizes are divided

Every row runs in a process of its own. Its seconds are without imports and the start of the device, which are rows of
their own, with the device waited for; its memory is the most that torch had taken of an accelerator.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("pdiff-hf", "torch", "diffusers", "accelerate")
TIMEOUT_SECONDS = 900
DEVICES = ("accelerator", "cpu")
WHOLE_RESNET = {"network": "resnet18", "latents": 64, "networks": 100}
WHOLE_VIT = {"network": "vit_base_patch16_224", "latents": 10, "networks": 16}
# Function of `gpu_rows.rows`, what it is, what changes with the scale; of `None` a row is left out.
FULL: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "networks": (
        "dataset_to_networks",
        "300 checkpoints, D = 2 048 → 100 networks",
        {"rows": 300, "networks": 100, "repeats": 3, "paper_steps": (10, 40)},
    ),
    "denoiser_step": (
        "denoiser_step",
        "a denoiser step, 32 × 4, batch 128",
        {"steps": (50, 450), "paper_steps": (10, 60)},
    ),
    "tails_32": (
        "tails",
        "100 ResNet-18 tails, 10 000 images of 32 pixels",
        {"size": 32, "images": 10_000, "networks": 100, "repeats": 5},
    ),
    "tails_224": (
        "tails",
        "the same at 224 pixels",
        {"size": 224, "images": 10_000, "networks": 100, "repeats": 3},
    ),
    "whole_resnet18": ("whole_network", "whole ResNet-18, K = 100, PCA → 100 networks", {**WHOLE_RESNET, "rows": 100}),
    "whole_vit_base": ("whole_network", "whole ViT-Base, K = 16, PCA → 16 networks", {**WHOLE_VIT, "rows": 16}),
    "long_autoencoder": (
        "long_autoencoder",
        "autoencoder, D = 300 288, batch 50, 500 steps",
        {"values": 300_288, "steps": (10, 60), "paper_steps": (2, 6)},
    ),
    "zoo": ("zoo", "1 000 perceptrons, 150 epochs", {"networks": 1000, "epochs": 150}),
    "function_autoencoder": (
        "function_autoencoder",
        "function-aware autoencoder of 500 perceptrons, 3 000 steps",
        {"networks": 500, "total": 3000, "steps": (50, 450)},
    ),
}
# Where a CPU would take too long, or too much memory.
ON_CPU: dict[str, dict[str, Any] | None] = {
    "networks": {"repeats": 1, "paper_steps": (1, 3)},
    "denoiser_step": {"steps": (10, 60), "paper_steps": (2, 6)},
    "tails_32": {"repeats": 1},
    "tails_224": None,
    "whole_resnet18": {"networks": 10},
    "whole_vit_base": None,
    "long_autoencoder": {"steps": (2, 6), "paper_steps": None},
    "function_autoencoder": {"steps": (10, 60)},
}
SMALL: dict[str, dict[str, Any] | None] = {
    "networks": {"rows": 60, "networks": 4, "repeats": 1, "paper_steps": (1, 2)},
    "denoiser_step": {"steps": (2, 12), "paper_steps": (1, 3)},
    "tails_32": {"images": 500, "networks": 8, "repeats": 1},
    "tails_224": None,
    "whole_resnet18": {"network": "resnet10t", "rows": 8, "latents": 4, "networks": 2},
    "whole_vit_base": None,
    "long_autoencoder": {"values": 20_000, "steps": (1, 2), "paper_steps": (1, 2)},
    "zoo": {"networks": 200, "epochs": 2},
    "function_autoencoder": {"networks": 200, "total": 30, "steps": (1, 11)},
}


def sizes(row: str, scale: str, device: str) -> dict[str, Any] | None:
    """What a row is measured with; `None` where it is left out."""
    changes = ({}, ON_CPU.get(row, {}) if device == "cpu" else {}, SMALL[row] if scale == "small" else {})
    return None if None in changes else {**FULL[row][2], **changes[1], **changes[2]}


def run_row(row: str, scale: str, device: str) -> dict[str, Any]:
    """Measure a row, or the start of Python and of the device, in this process."""
    begin = time.perf_counter()
    import torch

    from gpu_rows import rows, timing
    from pdiff_hf.machine import default_device

    imported = time.perf_counter()
    torch.ones(8, 8, device=default_device()).matmul(torch.ones(8, 8, device=default_device())).sum().item()
    found = {"imports": imported - begin, "start": time.perf_counter() - imported}
    if row != "start":
        with timing.watched_memory(found):
            found |= getattr(rows, FULL[row][0])(sizes(row, scale, device))
    return found


def measure(row: str, scale: str, device: str) -> dict[str, Any] | str:
    """[`run_row`] in a process of its own; why there is nothing, where that is so."""
    environment = {**os.environ, "TQDM_DISABLE": "1"} | ({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})
    words = [sys.executable, str(Path(__file__).resolve()), "--child", row, "--scale", scale, "--device", device]
    try:
        run = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"stopped after {TIMEOUT_SECONDS} s"
    if run.returncode:
        print(run.stderr[-3000:], file=sys.stderr)
        return f"failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]:.150}"
    return json.loads(run.stdout.splitlines()[-1])


def seconds(value: float | None) -> str:
    """Three digits that matter."""
    return "–" if value is None else f"{1000 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def cells(found: dict[str, Any] | str | None) -> list[str]:
    """Seconds, the published method's, ratio, memory, note."""
    if found is None or isinstance(found, str):
        return ["not measured", "–", "–", "–", found or ""]
    ratio = f"{found['published'] / found['seconds']:.3g}×" if found["published"] and found["seconds"] else "–"
    memory = f"{found['memory_gb']:.2f} GB" if "memory_gb" in found else "–"
    return [seconds(found["seconds"]), seconds(found["published"]), ratio, memory, found["note"]]


def make_page(results: dict[str, dict[str, Any]], names: dict[str, str], scale: str, note: str = "") -> str:
    """The tables of all devices as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    what = "" if scale == "full" else " Sizes are divided: this only shows that it runs."
    lines = ["# What an accelerator is worth", "", f"`make bench-gpu`, {datetime.date.today()}. {versions}.{what}", ""]
    lines += [
        "Published: the preset `paper`, networks drawn one by one and evaluated by full forward passes, on the same",
        f"device in the same run. Imports and the start of the device are rows of their own. {note}".rstrip(),
    ]
    for device, rows in results.items():
        lines += ["", f"## {names[device]}", "", "| workload | seconds | published | ratio | memory | how |"]
        lines.append("|---|--:|--:|--:|--:|---|")
        start = rows.get("start")
        if isinstance(start, dict):
            lines.append(f"| imports of all that is measured | {seconds(start['imports'])} | – | – | – | |")
            lines.append(f"| start of the device | {seconds(start['start'])} | – | – | – | |")
        for row, (_, title, _) in FULL.items():
            lines.append(f"| {title} | {' | '.join(cells(rows.get(row)))} |")
    return "\n".join([*lines, ""])


def describe(device: str) -> str | None:
    """The name of a device, `None` where there is none."""
    from pdiff_hf.machine import default_device, describe_hardware

    hardware = describe_hardware()
    if device == "cpu":
        return f"CPU: {hardware['cpu']}, {hardware['cores']} cores"
    return None if default_device().type == "cpu" else f"Accelerator: {hardware['accelerator']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=FULL, help="these rows; the page is printed, not written")
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    parser.add_argument("--device", choices=DEVICES, help="one device; the page is printed, not written")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS_GPU.md")
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else the machine did")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_row(arguments.child, arguments.scale, arguments.device)))
        return
    results, names = {}, {}
    for device in [arguments.device] if arguments.device else DEVICES:
        name, results[device] = describe(device), {}
        names[device] = name or "Accelerator: there is none here"
        for row in ("start", *(arguments.rows or FULL)) if name else ():
            if row == "start" or sizes(row, arguments.scale, device) is not None:
                print(f"{device}: {row} …", flush=True)
                results[device][row] = measure(row, arguments.scale, device)
    page = make_page(results, names, arguments.scale, arguments.note)
    print(page)
    if not (arguments.rows or arguments.device or arguments.scale == "small"):
        arguments.output.write_text(page, encoding="utf-8")
        print(f"{arguments.output} written")
    failed = [row for rows in results.values() for row, found in rows.items() if isinstance(found, str)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
