"""Few-step sampling against the reference: 20 DPM-Solver++ steps and 1000 DDPM steps of one pipeline, in one run.

python benchmarks/sampling.py                    # trains on the digits first
python benchmarks/sampling.py --run runs/mine    # any finished run
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion

SETTINGS = {"dpmsolver++": 20, "ddim": 50, "ddpm": 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run; trained on the digits by default")
    parser.add_argument("--num_samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.run or Path(temporary) / "run"
        if arguments.run is None:
            recipe = load_recipe("digits-mlp", ["diffusion.steps=250"])
            collect(recipe, run / "dataset")
            train_autoencoder(run / "dataset", run / "autoencoder", recipe.autoencoder)
            train_diffusion(run / "dataset", run / "autoencoder", run / "pipeline", recipe.diffusion)
        dataset, layout = load_parameter_dataset(run / "dataset")
        originals = dataset_vectors(dataset, layout)
        groups, seconds = {"original": originals}, {}
        for name, steps in SETTINGS.items():
            folder = Path(temporary) / name
            pipeline = load_pipeline(run / "pipeline")
            pipeline.set_progress_bar_config(disable=True)
            start = time.perf_counter()
            generate_networks(pipeline, folder, arguments.num_samples, steps, name, seed=arguments.seed)
            seconds[name] = time.perf_counter() - start
            groups[name] = load_generated(folder, layout)
        # One network at a time is what the published code does; ten of the thousand steps are enough to time it.
        pipeline = load_pipeline(run / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        pipeline(num_inference_steps=1)
        start = time.perf_counter()
        for _ in range(3):
            pipeline(num_inference_steps=10, generator=torch.Generator().manual_seed(0))
        one_by_one = (time.perf_counter() - start) / 30 * 1000 * arguments.num_samples
        task = open_task(ParameterDataset(run / "dataset"))
        model = load_base_model(run / "dataset").build()
        evaluators = (ParameterEvaluator(model, layout, *task.arrays(split)) for split in ("val", "test"))
        result = evaluate_groups(groups, *evaluators)
    table = Table(title=f"{arguments.num_samples} networks of {layout.num_parameters} parameters")
    for column in (
        "sampler",
        "steps",
        "seconds",
        "faster than one by one, 1000 steps",
        "mean test accuracy, %",
        "std",
    ):
        table.add_column(column, justify="right")
    for name, steps in SETTINGS.items():
        accuracy = result.metrics.groups[name].test_accuracy
        low, high = accuracy.ci95
        table.add_row(
            name,
            str(steps),
            f"{seconds[name]:.2f}",
            f"{one_by_one / seconds[name]:.0f}x",
            f"{100 * accuracy.mean:.3f} ({100 * low:.2f} to {100 * high:.2f})",
            f"{100 * accuracy.std:.3f}",
        )
    console.print(table)
    reference = result.groups["ddpm"].test_accuracy.double()
    few = result.groups["dpmsolver++"].test_accuracy.double()
    difference = (few.mean() - reference.mean()).item()
    margin = 1.96 * (few.var() / len(few) + reference.var() / len(reference)).sqrt().item()
    console.print(
        f"dpmsolver++ minus ddpm: {100 * difference:+.3f} points, 95 % interval over networks "
        f"{100 * (difference - margin):+.3f} to {100 * (difference + margin):+.3f}"
    )


if __name__ == "__main__":
    main()
