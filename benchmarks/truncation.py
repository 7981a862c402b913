"""Mean test accuracy of generated networks against `truncation`, minus that of the originals.

    python benchmarks/truncation.py runs/demo runs/resnet18

Every run needs its dataset, its pipeline and its images. Networks are drawn from the same noise for every truncation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from rich.console import Console
from rich.table import Table

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.tasks.evaluators import open_task

TRUNCATIONS = (1.0, 0.8, 0.6, 0.4)


def differences(run: Path, num_samples: int, steps: int, seed: int) -> tuple[float, list[float]]:
    """Mean accuracy of the originals in percent, and what the generated networks have more, in points."""
    dataset, layout = load_parameter_dataset(run / "dataset")
    model, task = load_base_model(run / "dataset").build(), open_task(ParameterDataset(run / "dataset"))
    evaluator = ParameterEvaluator(model, layout, *task.arrays("test"))
    pipe = PDiffPipeline.from_pretrained(run / "pipeline")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    options = {"batch_size": num_samples, "num_inference_steps": steps, "output_type": "pt"}
    originals = 100 * evaluator.accuracy(dataset_vectors(dataset, layout)).mean().item()
    found = []
    for truncation in TRUNCATIONS:
        vectors = pipe(**options, truncation=truncation, generator=torch.Generator().manual_seed(seed)).parameters
        found.append(100 * evaluator.accuracy(vectors).mean().item() - originals)
    return originals, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--num_samples", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    table = Table("run", "originals, %", *(f"truncation {value:g}" for value in TRUNCATIONS))
    for run in args.runs:
        originals, found = differences(run, args.num_samples, args.num_inference_steps, args.seed)
        table.add_row(run.name, f"{originals:.2f}", *(f"{value:+.2f}" for value in found))
    Console().print(table)


if __name__ == "__main__":
    main()
