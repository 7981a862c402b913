"""What the denoiser learns, by what is chosen for it: the table behind the defaults.

    python benchmarks/denoiser.py runs/demo/dataset runs/resnet18/dataset --seeds 0 1 2
    python benchmarks/denoiser.py runs/demo/dataset --set diffusion.steps=1000
    python benchmarks/denoiser.py runs/demo/dataset --only default "latents whitened" --draws 200

Every tenth checkpoint is kept from both stages. A cell is the loss of the denoiser on these, divided by that of the
best denoiser of a Gaussian with the mean and covariance of all other latents, by the same noise schedule: 1 is no more
than a Gaussian. Beside it the step that was kept, and the seconds that the training took; means over the seeds, whose
standard deviation of the ratio follows. Ratios of other schedules and other scalings of the latents are of other noise
levels: what they are worth, networks drawn tell. Of `--draws` networks a cell has the two-sample accuracy, the
distance to the nearest row seen over that to the nearest not seen (`docs/evaluation.md`), and the mean test accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.distribution import compare_distributions
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.pipelines.sampling import make_scheduler
from pdiff_hf.tasks.evaluators import make_evaluator
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.denoiser import as_denoiser, train_denoiser
from pdiff_hf.training.loop import make_accelerator
from pdiff_hf.training.losses import compare_with_gaussians

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "16 latent values": {"autoencoder.latent_channels": 16},
    "64 latent values": {"autoencoder.latent_channels": 64},
    "32 × 4 latent values": {"autoencoder.latent_length": 4},
    "latents as they are": {"autoencoder.latent_whitening": 0},
    "latents whitened": {"autoencoder.latent_whitening": 1},
    "linear schedule": {"diffusion.beta_schedule": "linear"},
    "noise predicted": {"diffusion.prediction_type": "epsilon"},
    "clean latents predicted": {"diffusion.prediction_type": "sample"},
    "target of one row": {"diffusion.stable_target": False},
    "min-SNR weights": {"diffusion.snr_gamma": 5},
    "no noise on latents": {"diffusion.latent_noise": 0},
    "noise 0.1 on latents": {"diffusion.latent_noise": 0.1},
    "learning rate 2e-3": {"diffusion.learning_rate": 2e-3},
    "learning rate 4e-3": {"diffusion.learning_rate": 4e-3},
    "learning rate 1e-2": {"diffusion.learning_rate": 1e-2},
    "no average of weights": {"diffusion.use_ema": False},
    "batch 64": {"diffusion.train_batch_size": 64},
    "batch 256": {"diffusion.train_batch_size": 256},
    "250 steps": {"diffusion.steps": 250},
    "1000 steps": {"diffusion.steps": 1000},
    "width 128": {"diffusion.block_out_channels": [128]},
    "width 512": {"diffusion.block_out_channels": [512]},
    "two levels, 256 and 256": {"diffusion.block_out_channels": [256, 256]},
    "the last step": {"diffusion.validate": "none"},
    "UNet1DModel, width 128": {"diffusion.kind": "unet_1d"},
}


def draw(pipeline: PDiffPipeline, number: int, dataset: ParameterDataset, rows: torch.Tensor, every: int) -> dict:
    """Figures of networks drawn in 20 steps, beside the latents `rows` of all checkpoints."""
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler, 20)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 20, "generator": noise, "output_type": "latent"}
    latents = pipeline(batch_size=number, **options).parameters
    found = compare_distributions({"generated": latents.flatten(1)}, rows.flatten(1), every)["generated"]
    vectors = torch.cat([*pipeline.autoencoder.decode_rows(pipeline.autoencoder.unscale_latents(latents))])
    accuracy = make_evaluator(dataset, "test").accuracy(vectors).mean().item()
    return {"two_sample": found.two_sample_accuracy, "nearest": found.nearest_train_ratio, "accuracy": accuracy}


def measure(
    dataset: ParameterDataset, options: Mapping[str, Any], seeds: list[int], draws: int = 0
) -> list[dict[str, Any]]:
    """What [`compare_with_gaussians`] finds for every seed, with the kept step, the seconds and figures of draws."""
    sections: dict[str, dict[str, Any]] = {"autoencoder": {"allow_poor_reconstruction": True}, "diffusion": {}}
    for key, value in options.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    config = AUTOENCODER.validate(sections["autoencoder"])
    train_rows, heldout_rows = split_rows(len(dataset), config.holdout_every)
    config = config.fit_latents(DENOISER.validate(sections["diffusion"]), len(train_rows))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        autoencoder, _ = train_autoencoder(dataset, Path(folder) / "autoencoder", config)
        latents = autoencoder.scale_latents(autoencoder.encode_rows(dataset.vectors()))
        for seed in seeds:
            diffusion = DENOISER.validate({"checkpointing_steps": 10**9, **sections["diffusion"], "seed": seed})
            accelerator = make_accelerator(diffusion, folder)
            begin = time.perf_counter()
            denoiser, scheduler, record, _ = train_denoiser(
                accelerator, latents[train_rows], dataset.order.by_run(train_rows.tolist()), diffusion, Path(folder)
            )
            seconds = time.perf_counter() - begin
            losses = compare_with_gaussians(
                as_denoiser(denoiser), latents[train_rows], latents[heldout_rows], scheduler
            )
            of_draws = {}
            if draws:
                pipeline = PDiffPipeline(autoencoder, denoiser, scheduler)
                of_draws = draw(pipeline, draws, dataset, latents, config.holdout_every)
            found.append({**losses, "kept_step": record["kept_step"], "seconds": seconds, **of_draws})
    return found


def cell(found: list[dict[str, Any]]) -> str:
    """Ratio to the Gaussian, kept step and seconds, means over the seeds."""
    ratios = [of_seed["loss"] / of_seed["gaussian"] for of_seed in found]
    step, seconds = (statistics.mean(of_seed[key] for of_seed in found) for key in ("kept_step", "seconds"))
    spread = f" ± {statistics.stdev(ratios):.3f}" if len(ratios) > 1 else ""
    text = f"{statistics.mean(ratios):.3f}{spread}; {step:.0f}; {seconds:.1f} s"
    for key in ("two_sample", "nearest", "accuracy"):
        if key in found[0]:
            text += f"; {statistics.mean(of_seed[key] for of_seed in found):.{4 if key == 'accuracy' else 2}f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="parameter datasets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these variants")
    parser.add_argument("--draws", type=int, default=0, help="networks to draw and to compare with those not seen")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one more variant")
    arguments = parser.parse_args()
    variants = {name: VARIANTS[name] for name in arguments.only or VARIANTS}
    if arguments.set:
        given = dict(pair.split("=", 1) for pair in arguments.set)
        variants = {"default": {}, ", ".join(arguments.set): {key: yaml.safe_load(given[key]) for key in given}}
    datasets = {path: ParameterDataset(path) for path in arguments.datasets}
    names = [Path(path).parent.name if Path(path).name == "dataset" else Path(path).name for path in datasets]
    table = Table("variant", *names, title="loss on unseen rows / the full Gaussian's; step kept; seconds")
    for name, options in variants.items():
        row = []
        for dataset in datasets.values():
            try:
                row.append(cell(measure(dataset, options, arguments.seeds, arguments.draws)))
            except ValueError as error:
                row.append(str(error))
            print(f"{name}: {row[-1]}", flush=True)
        table.add_row(name, *row)
    Console(width=40 + 34 * len(names)).print(table)


if __name__ == "__main__":
    main()
