"""The diffusion stage: the default's denoiser against those of the kind `unet_1d`, fast and as in the paper.

    python benchmarks/diffusion.py

A step is the training's: loss, gradient and optimiser. The paper's 1000 steps are extrapolated from a few. Latents are
standard normal; steps cost the same for any.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from common import fastest, matmul_rate
from pdiff_hf.models.config import PAPER_LATENTS, DiffusionConfig
from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConditionConfig, UNet1DConfig

# Name, section and shape of the latents; the first one is what the others are compared with.
LATENTS = (AutoencoderPDiffConfig().latent_channels, AutoencoderPDiffConfig().latent_length)
# That of version 0.1.
OLD = UNet1DConfig(steps=250, block_out_channels=(64, 128))
CASES: tuple[tuple[str, DiffusionConfig, tuple[int, int]], ...] = (
    ("unet_1d, paper", UNet1DConfig(preset="paper"), tuple(PAPER_LATENTS.values())),
    ("unet_1d, default of 0.1", OLD, (32, 4)),
    ("default", UNet1DConditionConfig(), LATENTS),
    ("default, width 512", UNet1DConditionConfig(block_out_channels=(512,)), LATENTS),
    ("default, width 1024", UNet1DConditionConfig(block_out_channels=(1024,)), LATENTS),
    ("default, width 512, batch 512", UNet1DConditionConfig(block_out_channels=(512,), train_batch_size=512), LATENTS),
)


def measure_step(config: DiffusionConfig, shape: tuple[int, int], repeats: int) -> tuple[float, float]:
    """Seconds and floating point operations of one training step."""
    torch.manual_seed(0)
    denoiser = config.build(shape)
    if config.contains_gaussian:
        denoiser.fit_gaussian(torch.randn(4 * shape[0] * shape[1], *shape), config.build_scheduler())
    latents, timesteps = torch.randn(config.train_batch_size, *shape), torch.randint(1000, (config.train_batch_size,))
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)

    def step() -> None:
        denoiser(latents, timesteps).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    return fastest(step, repeats), counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    rate = matmul_rate()
    table = Table(title=f"diffusion stage, {torch.get_num_threads()} threads, matmul {rate / 1e9:.0f} GFLOP/s")
    for column in ("denoiser", "steps x batch", "step (ms)", "all steps (s)", "times faster", "share of matmul rate"):
        table.add_column(column, justify="left" if column == "denoiser" else "right")
    reference = None
    for name, config, shape in CASES:
        seconds, flops = measure_step(config, shape, 2 if reference is None else arguments.repeats)
        total = config.steps * seconds
        reference = reference or total
        table.add_row(
            name,
            f"{config.steps} x {config.train_batch_size}",
            f"{1e3 * seconds:.1f}",
            f"{total:.1f}",
            f"{reference / total:.1f}",
            f"{flops / seconds / rate:.0%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
