"""Dataset → 100 generated networks → their evaluation, against the published code's protocol.

    python benchmarks/end_to_end.py                           # whole MLP on the embedded digits
    python benchmarks/end_to_end.py --images PATH             # ResNet-18, last two norms; collects first, minutes
    python benchmarks/end_to_end.py --dataset runs/mine/dataset   # a parameter dataset that is there already

Evaluated are the generated networks on 10 000 images at most: those of the test split, filled up from the train split
for time's sake; accuracies are those on the test split. The published code's time for ResNet-18 on two cores, 1 200 s
(autoencoder 183 s, diffusion 228 s, sampling 5.3 s and evaluation 2.6 s per network), was measured on another machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from common import measure
from pdiff_hf.data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.models.kinds import AutoencoderPDiffConfig, UNet1DConditionConfig
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import collect
from pdiff_hf.tasks.evaluators import open_task
from pdiff_hf.training.autoencoder import train_autoencoder

NUM_IMAGES = 10_000
PUBLISHED_SECONDS, PUBLISHED_PARAMETERS = 1200, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="task.dataset of resnet18-last-norms, a folder or a Hub id")
    parser.add_argument("--dataset", type=Path, help="a parameter dataset, instead of collecting one")
    parser.add_argument("--epochs", type=int, default=2, help="of base training with --images")
    parser.add_argument("--num_samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset_dir = arguments.dataset or folder / "dataset"
        if arguments.images and not arguments.dataset:
            options = [f"task.dataset={arguments.images}", f"base_training.epochs={arguments.epochs}"]
            collect(load_recipe("resnet18-last-norms", options), dataset_dir)
        elif not arguments.dataset:
            collect(load_recipe("digits-mlp"), dataset_dir)
        Console(width=120).print(run(dataset_dir, folder, arguments.num_samples, arguments.seed))


def run(dataset_dir: Path, folder: Path, num_samples: int, seed: int) -> Table:
    """Measure every stage."""
    task, base_model = open_task(ParameterDataset(dataset_dir)), load_base_model(dataset_dir)
    dataset, layout = load_parameter_dataset(dataset_dir)
    model = base_model.build()
    seconds = {}

    # 1. Autoencoder and gate
    begin = time.perf_counter()
    gate = ParameterEvaluator(model, layout, *task.arrays("val"))
    config = AutoencoderPDiffConfig(seed=seed, allow_poor_reconstruction=True)
    _, report = train_autoencoder(dataset_dir, folder / "autoencoder", config, gate)
    seconds["autoencoder and gate"] = time.perf_counter() - begin

    # 2. Diffusion and sampling, in processes of their own, without what those take to start
    config = UNet1DConditionConfig(seed=seed).model_dump(exclude_unset=True)
    seconds["diffusion"] = measure(
        "diffusion",
        dataset=dataset_dir,
        autoencoder_dir=folder / "autoencoder",
        output_dir=folder / "pipeline",
        config=config,
    )["seconds"]
    seconds["sampling"] = measure(
        "generate", pipeline=folder / "pipeline", output_dir=folder / "generated", num_samples=num_samples, seed=seed
    )["seconds"]
    training = sum(seconds.values())

    # 3. Evaluation
    vectors = load_generated(folder / "generated", layout)
    images, labels = task.arrays("test")
    num_test = len(images)
    more = [array[: max(0, NUM_IMAGES - num_test)] for array in task.arrays("train")]
    begin = time.perf_counter()
    evaluator = ParameterEvaluator(model, layout, torch.cat([images, more[0]]), torch.cat([labels, more[1]]))
    output = evaluator.predict(vectors)
    seconds["evaluation"] = time.perf_counter() - begin
    generated = (output.predictions[:, :num_test] == labels).float().mean(1)
    originals = evaluator.predict(dataset_vectors(dataset, layout), num_test).accuracy

    table = Table(title=f"{layout.num_parameters:,} parameters, {len(dataset)} checkpoints, {num_samples} networks")
    for column in ("what", "measured", "must reach (ResNet-18, quiet machine)"):
        table.add_column(column)
    for name, value in seconds.items():
        table.add_row(f"{name}: seconds", f"{value:.1f}", "")
    table.add_row("dataset to generated networks: seconds", f"{training:.1f}", "<= 8")
    table.add_row(
        f"and evaluated on {len(evaluator.labels):,} images: seconds", f"{sum(seconds.values()):.1f}", "<= 20"
    )
    table.add_row("held-out variance explained", f"{report['explained_variance']:.4f}", ">= 0.95")
    table.add_row("accuracy lost in reconstruction, points", f"{100 * report['accuracy_drop']:.2f}", "<= 0.2")
    table.add_row("mean test accuracy of the originals, %", f"{100 * originals.mean():.3f}", "")
    table.add_row("of the generated networks, %", f"{100 * generated.mean():.3f}", ">= originals")
    if layout.num_parameters == PUBLISHED_PARAMETERS:
        table.add_row("published code / this", f"{PUBLISHED_SECONDS / sum(seconds.values()):.0f} x", "")
    return table


if __name__ == "__main__":
    main()
