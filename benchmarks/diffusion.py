"""The diffusion stage: preset `fast` against preset `paper`, and a training step with and without fast layers.

    python benchmarks/diffusion.py

The paper's 1000 steps are extrapolated from a few. Latents are standard normal; steps cost the same for any.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from common import fastest, matmul_rate
from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConfig
from pdiff_hf.models.unet_1d import make_unet_1d


def measure_step(shape: tuple[int, int], config: UNet1DConfig, fast: bool, repeats: int) -> tuple[float, float]:
    """Seconds and floating point operations of one training step."""
    torch.manual_seed(0)
    unet = make_unet_1d(*shape, config.block_out_channels, config.layers_per_block)
    latents, timesteps = torch.randn(config.train_batch_size, *shape), torch.randint(1000, (config.train_batch_size,))
    with FlopCounterMode(display=False) as counter:
        unet(latents, timesteps).sample.square().mean().backward()
    if fast:
        unet = config.build(shape)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)

    def step() -> None:
        unet(latents, timesteps).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return fastest(step, repeats), counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    rate = matmul_rate()
    table = Table(title=f"diffusion stage, {torch.get_num_threads()} threads, matmul {rate / 1e9:.0f} GFLOP/s")
    for column in ("preset", "steps x batch", "step (ms)", "all steps (s)", "times faster", "share of matmul rate"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    reference = None
    for preset, fast in (("paper", False), ("fast", False), ("fast", True)):
        config, latents = UNet1DConfig(preset=preset), AutoencoderPDiffConfig(preset=preset)
        shape = (latents.latent_channels, latents.latent_length)
        repeats = 2 if preset == "paper" else arguments.repeats
        seconds, flops = measure_step(shape, config, fast, repeats)
        total = config.steps * seconds
        reference = reference or total
        table.add_row(
            f"{preset}, {'fast layers' if fast else 'library layers'}",
            f"{config.steps} x {config.train_batch_size}",
            f"{1e3 * seconds:.1f}",
            f"{total:.0f}",
            f"{reference / total:.1f}",
            f"{flops / seconds / rate:.0%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
