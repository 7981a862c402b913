"""Time and memory of all stages against D, K and steps, and whole networks of tens of millions of parameters.

    python benchmarks/scaling.py                     # exponents from D = 2e3 to 1e7, and the cost model
    python benchmarks/scaling.py --whole resnet18    # 11.2 M parameters, K = 100, 10 generated networks
    python benchmarks/scaling.py --whole vit_base    # 86 M parameters, K = 16; 20 GB of disk

Checkpoints are synthetic, a low-rank random walk with the network's real layout: time and memory are those of real
ones, quality is not measured. The autoencoder is AutoencoderPCA, and every stage goes the ordinary way:
`train_autoencoder`, `train_diffusion`, `generate_networks`, all in one process for each dataset. Peaks of resident
memory are up to the end of each stage.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from common import flat_layout, measure, write_walk
from pdiff_hf.layout import ParameterLayout

# (D, K)
POINTS = (
    (2_000, 20),
    (200_000, 20),
    (1_000_000, 20),
    (1_000_000, 80),
    (10_000_000, 20),
)
# Components of the scaling runs, for K = 20 and K = 80 alike.
SMALL_LATENTS = {"latent_channels": 14, "latent_length": 1}
# Name: (timm's name, arguments, K, latents, required minutes and GB)
WHOLE = {
    "resnet18": ("resnet18", {"num_classes": 10}, 100, {"latent_channels": 64, "latent_length": 1}, (5, 8)),
    "vit_base": (
        "vit_base_patch16_224",
        {"num_classes": 10},
        16,
        {"latent_channels": 10, "latent_length": 1},
        (None, 16),
    ),
}
STAGES = ("autoencoder", "diffusion", "generate")


def run(folder: Path, dataset: Path, latents: dict, steps: int | None, num_samples: int) -> dict[str, dict]:
    """Seconds and peak memory of every stage, one after the other in one process."""
    config = {"kind": "pca", "allow_poor_reconstruction": True, **latents}
    short = {} if steps is None else {"steps": steps, "lr_warmup_steps": 0}
    autoencoder, pipeline = folder / "autoencoder", folder / "pipeline"
    generated = folder / "generated"
    stages = {
        "autoencoder": {"dataset": dataset, "output_dir": autoencoder, "config": config},
        "diffusion": {
            "dataset": dataset,
            "autoencoder_dir": autoencoder,
            "output_dir": pipeline,
            "config": short,
        },
        "generate": {"pipeline": pipeline, "output_dir": generated, "num_samples": num_samples},
    }
    return measure("stages", **stages)


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def print_scaling(console: Console, points: tuple, steps: int) -> None:
    table = Table(title=f"AutoencoderPCA, {steps} steps of the denoiser, 4 generated networks", min_width=100)
    for column in ("D", "K", *(f"{stage}: s, GB" for stage in STAGES)):
        table.add_column(column, justify="right")
    found = []
    for values, rows in points:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_walk(folder / "dataset", rows, flat_layout(values), directions=18)
            stages = run(folder, folder / "dataset", SMALL_LATENTS, steps, 4)
        found.append(stages)
        cells = [f"{stages[stage]['seconds']:.2f}, {stages[stage]['peak_gb']:.2f}" for stage in STAGES]
        table.add_row(f"{values:,}", str(rows), *cells)
    console.print(table)

    # 1. Exponents along D, at the smallest K
    fixed = [index for index, (_, rows) in enumerate(points) if rows == points[0][1]]
    values = [points[index][0] for index in fixed]
    totals = {
        "time of all stages": [sum(found[index][stage]["seconds"] for stage in STAGES) for index in fixed],
        "peak memory": [max(found[index][stage]["peak_gb"] for stage in STAGES) for index in fixed],
    }
    table = Table(title=f"growth with D, {values[0]:,} to {values[-1]:,}")
    for column in ("what", "exponent", "must be at most", "exponent between the last two"):
        table.add_column(column)
    for name, measured in totals.items():
        last = exponent(values[-2:], measured[-2:])
        table.add_row(name, f"{exponent(values, measured):.2f}", "1.05", f"{last:.2f}")
    console.print(table)

    # 2. Cost model
    sizes = np.array([[1, d * k / 1e9, d * k * k / 1e9] for d, k in points])
    components = SMALL_LATENTS["latent_channels"] * SMALL_LATENTS["latent_length"]
    memory = np.array([[1, 4 * d * components / 1e9, 4 * d / 1e9] for d, _ in points])
    seconds = nnls(sizes, np.array([stages["autoencoder"]["seconds"] for stages in found]))[0]
    encoding = nnls(sizes[:, :2], np.array([stages["diffusion"]["seconds"] for stages in found]))[0]
    peaks = nnls(memory, np.array([max(stages[stage]["peak_gb"] for stage in STAGES) for stages in found]))[0]
    console.print("Cost model (D parameters, K checkpoints, k components, S steps of the denoiser):", markup=False)
    console.print(
        f"autoencoder   {seconds[0]:.1f} s + {seconds[1]:.1f} s x D K / 1e9 + {seconds[2]:.2f} s x D K^2 / 1e9"
    )
    console.print(
        f"diffusion     {encoding[0]:.1f} s + {encoding[1]:.1f} s x D K / 1e9, with S = {steps}; see diffusion.py"
    )
    console.print(f"peak memory   {peaks[0]:.2f} GB + {peaks[1]:.1f} x 4 D k bytes + {peaks[2]:.1f} x 4 D bytes")


def print_whole(console: Console, name: str, num_samples: int) -> None:
    model, options, rows, latents, (minutes, gigabytes) = WHOLE[name]
    with torch.device("meta"):
        layout = ParameterLayout.from_model(timm.create_model(model, **options), "all")
    table = Table(title=f"{name}, whole, D = {layout.num_parameters:,}, K = {rows}, {num_samples} networks, synthetic")
    for column in ("stage", "seconds", "peak memory (GB)"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "dataset", rows, layout)
        stages = run(folder, folder / "dataset", latents, None, num_samples)
    for stage in STAGES:
        table.add_row(stage, f"{stages[stage]['seconds']:.1f}", f"{stages[stage]['peak_gb']:.2f}")
    total = sum(stages[stage]["seconds"] for stage in STAGES)
    table.add_row("all", f"{total:.1f}", f"{max(stages[stage]['peak_gb'] for stage in STAGES):.2f}")
    table.add_row("must be at most", str(60 * minutes) if minutes else "(runs)", str(gigabytes))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", choices=WHOLE, help="a whole network instead of the scaling")
    parser.add_argument("--num_samples", type=int, default=10, help="generated networks of --whole")
    parser.add_argument("--steps", type=int, default=20, help="steps of the denoiser in the scaling")
    parser.add_argument("--max_values", type=int, default=10_000_000, help="largest D of the scaling")
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(f"{torch.get_num_threads()} threads")
    if arguments.whole:
        print_whole(console, arguments.whole, arguments.num_samples)
    else:
        print_scaling(console, tuple(p for p in POINTS if p[0] <= arguments.max_values), arguments.steps)


if __name__ == "__main__":
    main()
