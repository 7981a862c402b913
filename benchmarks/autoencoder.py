"""The autoencoder stage: preset `fast` against preset `paper`, and its memory for long vectors.

    python benchmarks/autoencoder.py          # the paper's 500 steps extrapolated from single ones
    python benchmarks/autoencoder.py --full   # all of them, to compare explained variances

Synthetic checkpoints: a low-rank random walk. With `--full` both presets train on the same ones.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from common import fastest, flat_layout, matmul_rate, measure, write_walk
from pdiff_hf.models.autoencoder_pdiff import AutoencoderPDiff
from pdiff_hf.models.kinds import AutoencoderPDiffConfig

PAPER = AutoencoderPDiffConfig(preset="paper")
ROWS = 300


def paper_step_seconds(values: int) -> float:
    """Seconds of one training step of the preset `paper`; the fastest of three."""
    model = AutoencoderPDiff.from_preset("paper", num_parameters=values)
    sample = torch.randn(PAPER.train_batch_size, values)
    model.normalizer.fit(sample)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        noise = torch.randn_like(sample), torch.randn(PAPER.train_batch_size, *model.latent_shape)
        model(sample, *noise, loss_only=True).backward()
        optimizer.step()
        optimizer.zero_grad()

    return fastest(step, 3)


def share_of_matmul(values: int, batch: int) -> float:
    """Rate of training steps of the fast preset relative to that of `torch.matmul`."""
    model = AutoencoderPDiff.from_preset("fast", num_parameters=values)
    sample = torch.randn(batch, values)
    model.normalizer.fit(sample)

    def step() -> None:
        model(sample, torch.randn_like(sample), torch.randn(batch, *model.latent_shape), loss_only=True).backward()

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / fastest(step, 5) / matmul_rate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run all of the paper's steps")
    parser.add_argument("--values", type=int, default=2048)
    parser.add_argument("--long_values", type=int, default=300_288)
    arguments = parser.parse_args()
    table = Table(title=f"autoencoder stage, {ROWS} checkpoints, {torch.get_num_threads()} threads")
    for column in ("what", "measured", "must reach"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_walk(folder / "short", ROWS, flat_layout(arguments.values))
        config = {"allow_poor_reconstruction": True}
        fast = measure("autoencoder", dataset=folder / "short", output_dir=folder / "fast", config=config)
        table.add_row(f"fast, D = {arguments.values:,}: seconds", f"{fast['seconds']:.1f}", "")
        table.add_row("fast: held-out variance explained", f"{fast['report']['explained_variance']:.4f}", ">= 0.95")
        if arguments.full:
            config = {"preset": "paper", "allow_poor_reconstruction": True}
            paper = measure("autoencoder", dataset=folder / "short", output_dir=folder / "paper", config=config)
            seconds, explained = paper["seconds"], f"{paper['report']['explained_variance']:.4f}"
            table.add_row("paper: held-out variance explained", explained, "")
        else:
            seconds = PAPER.steps * paper_step_seconds(arguments.values)
        note = "" if arguments.full else ", extrapolated from single ones"
        table.add_row(f"paper, {PAPER.steps} steps{note}: seconds", f"{seconds:.0f}", "")
        table.add_row("fast is faster by", f"{seconds / fast['seconds']:.0f} x", ">= 10 x")
        table.add_row("share of torch.matmul's rate", f"{share_of_matmul(arguments.values, 64):.0%}", "")

        write_walk(folder / "long", ROWS, flat_layout(arguments.long_values))
        config = {"train_batch_size": 50, "steps": 3, "lr_warmup_steps": 0, "allow_poor_reconstruction": True}
        long = measure("autoencoder", dataset=folder / "long", output_dir=folder / "long-fast", config=config)
        name = f"fast, D = {arguments.long_values:,}, batch 50"
        table.add_row(f"{name}: peak memory, GB", f"{long['peak_gb']:.2f}", "<= 1.5 (paper: 44.9)")
        table.add_row("of which Python and its libraries, GB", f"{long['imports_gb']:.2f}", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
