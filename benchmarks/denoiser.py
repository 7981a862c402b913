"""What the denoiser learns with its steps: the checkpoints' distribution, a Gaussian, or the checkpoints by heart.

    python benchmarks/denoiser.py runs/demo/dataset runs/resnet18/dataset --steps 250 1000 4000

Every tenth checkpoint is kept from both stages. Losses are those of the velocity (Source: Salimans and Ho 2022, arXiv
2202.00512, appendix D), without the noise that training adds to the latents, over evenly spaced timesteps and the same
noise for all rows of the table. Three denoisers in closed form are there to compare with:

* white Gaussian: for latents from N(0, 1), which the autoencoder scales them to, the best prediction is 0;
* Gaussian: the best one for latents from a Gaussian with the training latents' mean and covariance;
* copies: the best one on the training latents, E[x_0 | x_t] over them alone; sampling with it returns checkpoints.

A denoiser that has learned more than a Gaussian has a smaller loss on what it has not seen; one that learns by heart
has a smaller loss on what it has seen only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors, split_rows
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.evaluation.intervals import sample_mean_interval
from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConfig
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion

NUM_TIMESTEPS = 100
# x_t, t, and the scheduler's square roots of alpha-bar and 1 - alpha-bar at t; gives the velocity.
Predictor = Callable[[torch.Tensor, int, float, float], torch.Tensor]


def velocity_losses(predict: Predictor, clean: torch.Tensor, scheduler: DDPMScheduler) -> torch.Tensor:
    """Mean squared errors `(K,)` of the velocity of latents `(K, C, L)`."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.linspace(0, scheduler.config.num_train_timesteps - 1, NUM_TIMESTEPS).long().tolist()
    losses = torch.zeros(len(clean))
    for timestep in timesteps:
        noise = torch.randn(clean.shape, generator=generator)
        power = scheduler.alphas_cumprod[timestep].item()
        signal, sigma = power**0.5, (1 - power) ** 0.5
        at = torch.tensor([timestep])
        predicted = predict(scheduler.add_noise(clean, noise, at), timestep, signal, sigma)
        losses += (predicted - scheduler.get_velocity(clean, noise, at)).square().flatten(1).mean(1)
    return losses / len(timesteps)


def from_clean(noisy: torch.Tensor, clean: torch.Tensor, signal: float, sigma: float) -> torch.Tensor:
    """The velocity that belongs to an estimate of x_0."""
    return signal * (noisy - signal * clean) / sigma - sigma * clean


def closed_forms(train: torch.Tensor) -> dict[str, Predictor]:
    """The denoisers to compare with, for training latents `(K, C, L)`."""
    flat = train.flatten(1)
    mean, centred = flat.mean(0), flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))

    def gaussian(noisy: torch.Tensor, timestep: int, signal: float, sigma: float) -> torch.Tensor:
        rotated = (noisy.flatten(1) - signal * mean) @ vectors
        shrunk = rotated * (signal * values / (signal**2 * values + sigma**2))
        return from_clean(noisy, (mean + shrunk @ vectors.T).view_as(noisy), signal, sigma)

    def copies(noisy: torch.Tensor, timestep: int, signal: float, sigma: float) -> torch.Tensor:
        weights = (-torch.cdist(noisy.flatten(1), signal * flat).square() / (2 * sigma**2)).softmax(1)
        return from_clean(noisy, (weights @ flat).view_as(noisy), signal, sigma)

    return {
        "white Gaussian": lambda noisy, *_: torch.zeros_like(noisy),
        "Gaussian": gaussian,
        "copies": copies,
    }


def add_rows(table: Table, name: str, losses: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """One row for every denoiser's losses on the training and on the held-out latents."""
    reference = losses["white Gaussian"][1]
    for denoiser, (train, heldout) in losses.items():
        low, high = sample_mean_interval((heldout - reference).double())
        difference = (heldout - reference).mean().item()
        shown = "" if denoiser == "white Gaussian" else f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        table.add_row(name, denoiser, f"{train.mean():.3f}", f"{heldout.mean():.3f}", shown)
        name = ""


def measure_dataset(path: Path, steps: list[int], seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Losses of all denoisers on the training and on the held-out latents of a parameter dataset."""
    dataset, layout = load_parameter_dataset(path)
    vectors = dataset_vectors(dataset, layout)
    train_rows, heldout_rows = split_rows(len(vectors), AutoencoderPDiffConfig().holdout_every)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_parameter_dataset(vectors[train_rows], layout, folder / "dataset", load_base_model(path))
        config = AutoencoderPDiffConfig(seed=seed, allow_poor_reconstruction=True)
        config = config.fit_latents(UNet1DConfig(), len(split_rows(len(train_rows), config.holdout_every)[0]))
        autoencoder, _ = train_autoencoder(folder / "dataset", folder / "autoencoder", config)
        train, heldout = (
            autoencoder.scale_latents(autoencoder.encode_rows(vectors[rows])) for rows in (train_rows, heldout_rows)
        )
        predictors = closed_forms(train)
        for number in steps:
            config = UNet1DConfig(seed=seed, steps=number)
            pipeline = train_diffusion(folder / "dataset", folder / "autoencoder", folder / str(number), config)
            unet = pipeline.unet.eval()
            predictors[f"{number} steps"] = lambda noisy, timestep, *_, unet=unet: unet(noisy, timestep).sample
        scheduler = pipeline.scheduler
        with torch.no_grad():
            return {
                name: (velocity_losses(predict, train, scheduler), velocity_losses(predict, heldout, scheduler))
                for name, predict in predictors.items()
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+", help="folders of parameter datasets")
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 1000, 4000], help="of the denoiser's training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = Table("dataset", "denoiser", "loss, seen", "loss, not seen", "not seen, minus white Gaussian's (95 %)")
    for path in arguments.datasets:
        name = path.parent.name if path.name == "dataset" else path.name
        add_rows(table, name, measure_dataset(path, arguments.steps, arguments.seed))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
