"""How much the generator's seed matters: mean test accuracy of generated networks minus that of the originals.

    python benchmarks/generator_seeds.py runs/demo runs/resnet18 --seeds 0 1 2 3 4

Of every run, the checkpoints stay; autoencoder, denoiser and draws are made anew for every seed with the settings of
its recipe. Intervals are Student's t over the seeds: what is left out is the choice of test images and of checkpoints.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.intervals import sample_mean_interval
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion


def generate(run: Path, seed: int, num_samples: int) -> torch.Tensor:
    """Networks `(n, D)` of a generator trained with this seed."""
    recipe, dataset = load_recipe(run / "recipe.yaml"), run / "dataset"
    seeded = {"seed": seed}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = recipe.autoencoder.model_copy(update={**seeded, "allow_poor_reconstruction": True})
        train_autoencoder(dataset, folder / "autoencoder", config)
        config = recipe.diffusion.model_copy(update=seeded)
        train_diffusion(dataset, folder / "autoencoder", folder / "pipeline", config)
        options = recipe.generate.model_dump(include={"num_inference_steps", "scheduler", "truncation"})
        generate_networks(load_pipeline(folder / "pipeline"), folder / "networks", num_samples, seed=seed, **options)
        return load_generated(folder / "networks", load_parameter_dataset(dataset)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--num_samples", type=int, default=100)
    args = parser.parse_args()
    table = Table("run", "originals, %", *(f"seed {seed}" for seed in args.seeds), "mean (95 %)")
    for run in args.runs:
        dataset, layout = load_parameter_dataset(run / "dataset")
        originals = 100 * sum(dataset["test_accuracy"]) / len(dataset)
        model, task = load_base_model(run / "dataset").build(), open_task(ParameterDataset(run / "dataset"))
        evaluator = ParameterEvaluator(model, layout, *task.arrays("test"))
        found = []
        for seed in args.seeds:
            accuracy = evaluator.accuracy(generate(run, seed, args.num_samples)).mean().item()
            found.append(100 * accuracy - float(originals))
            print(f"{run.name}, seed {seed}: {found[-1]:+.3f}", flush=True)
        low, high = sample_mean_interval(torch.tensor(found, dtype=torch.float64))
        mean = sum(found) / len(found)
        table.add_row(
            run.name, f"{originals:.2f}", *(f"{v:+.2f}" for v in found), f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
