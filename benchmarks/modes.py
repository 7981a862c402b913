"""Where a Gaussian fails and the denoiser does not: a collection of several modes, as a figure and on unseen runs.

    pdiff run digits-cycles --out runs/cycles
    python benchmarks/modes.py runs/cycles --figure docs/figures/digits-cycles.png
    python benchmarks/modes.py runs/cycles --runs

The figure has as many originals and draws as networks were generated, in the plane of the originals' first two
principal components. `--runs` takes one run after the other out: autoencoder, Gaussian and denoiser know the others
alone, and the number of steps is chosen by runs of these. The interval is over runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.baselines import latent_gaussian
from pdiff_hf.evaluation.intervals import sample_mean_interval
from pdiff_hf.models.auto import DENOISER
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.report.plots.style import color, new_figure
from pdiff_hf.runs.evaluate import fitted_gaussian
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.recipe import Recipe, load_recipe
from pdiff_hf.tasks.evaluators import make_evaluator
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.denoiser import as_denoiser, train_denoiser
from pdiff_hf.training.loop import make_accelerator
from pdiff_hf.training.losses import compare_with_gaussians


def draw_groups(run: Run) -> Figure:
    """Originals, draws of the Gaussian and generated networks in latent space, by their test accuracy."""
    dataset, pipeline = ParameterDataset(run.path("collect")), load_pipeline(run.path("diffusion"))
    originals, generated = dataset.vectors(rows=slice(None)), load_generated(run.path("generate"), dataset.layout)
    gaussian = fitted_gaussian(run.path("diffusion"), pipeline.autoencoder, originals)
    drawn = latent_gaussian(gaussian, pipeline.autoencoder, len(generated), torch.Generator().manual_seed(0))
    some = originals[torch.linspace(0, len(originals) - 1, len(generated)).round().long()]
    groups = {"originals": some, "Gaussian of their latents": drawn, "generated": generated}

    # 1. Accuracies, and the plane
    evaluator = make_evaluator(dataset, "test")
    accuracies = {name: 100 * evaluator.accuracy(vectors) for name, vectors in groups.items()}
    mean = 100 * evaluator.accuracy(originals).mean().item()
    latents = pipeline.autoencoder.scale_latents(pipeline.autoencoder.encode_rows(originals)).flatten(1)
    center = latents.mean(0)
    components = torch.linalg.svd(latents - center, full_matrices=False)[2][:2]
    shares = ((latents - center) @ components.T).var(0) / (latents - center).var(0).sum()

    # 2. A panel for each group, on the same axes and with the same colours
    figure, panels = new_figure(False, 3.1, columns=3, sharex=True, sharey=True)
    for axes, (name, vectors) in zip(panels, groups.items(), strict=True):
        encoded = pipeline.autoencoder.scale_latents(pipeline.autoencoder.encode_rows(vectors)).flatten(1)
        plane = (encoded - center) @ components.T
        found = axes.scatter(
            *plane.T, c=accuracies[name], s=16, cmap="viridis", vmin=mean - 15, vmax=mean, linewidths=0, alpha=0.85
        )
        accuracy = mean if name == "originals" else accuracies[name].mean().item()
        axes.set_title(f"{name}: {accuracy:.1f} %", fontsize=9.5, color=color("text"))
        axes.set_xlabel(f"component 1 ({shares[0]:.0%})")
    panels[0].set_ylabel(f"component 2 ({shares[1]:.0%} of the variance)")
    bar = figure.colorbar(found, ax=panels, extend="min", aspect=30, pad=0.02)
    bar.set_label("test accuracy, %", fontsize=9, color=color("text"))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=color("muted"), labelcolor=color("text"), labelsize=8.5)
    return figure


def unseen_runs(dataset: ParameterDataset, recipe: Recipe) -> dict[str, dict]:
    """By run what [`compare_with_gaussians`] says of its rows, when everything is fitted to the other runs."""
    runs, vectors = dataset.order.by_run(), dataset.vectors(rows=slice(None))
    columns = dataset.rows.remove_columns("parameters").with_format(None)[:]
    config = DENOISER.validate({**recipe.diffusion.model_dump(), "validate": "run", "checkpointing_steps": 10**9})
    found = {}
    for run, rows in runs.items():
        others = sorted(set(range(len(vectors))) - set(rows))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kept = {column: [values[row] for row in others] for column, values in columns.items()}
            seen = ParameterDataset.write(vectors[others], dataset.layout, folder / "dataset", columns=kept)
            autoencoder, _ = train_autoencoder(seen, folder / "autoencoder", recipe.autoencoder)
            latents = autoencoder.scale_latents(autoencoder.encode_rows(vectors))
            accelerator = make_accelerator(config, folder)
            denoiser, scheduler, record, _ = train_denoiser(
                accelerator, latents[others], seen.order.by_run(), config, folder
            )
        found[run] = record | compare_with_gaussians(as_denoiser(denoiser), latents[others], latents[rows], scheduler)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--runs", action="store_true", help="compare losses on runs that were not seen")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    if (found := ParameterDataset(run.path("collect")).condition_spec) is not None:
        parser.error(
            f"{run.folder} has conditions, {found.summary}, which nothing here tells; give one of digits-cycles."
        )
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw_groups(run).savefig(arguments.figure, dpi=110)
    if arguments.runs:
        found = unseen_runs(ParameterDataset(run.path("collect")), load_recipe(run.folder / "recipe.yaml"))
        table = Table("run held out", "kept step", "denoiser", "white Gaussian", "full Gaussian", "difference")
        for name, losses in found.items():
            numbers = (f"{losses[key]:.3f}" for key in ("loss", "white_gaussian", "gaussian", "difference"))
            table.add_row(name, str(losses["kept_step"]), *numbers)
        differences = torch.tensor([losses["difference"] for losses in found.values()])
        low, high = sample_mean_interval(differences)
        table.add_row("mean", "", "", "", "", f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        Console().print(table)


if __name__ == "__main__":
    main()
