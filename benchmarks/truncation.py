"""Accuracy and diversity of generated networks against `truncation`, beside those of the originals.

    python benchmarks/truncation.py runs/demo runs/resnet18
    python benchmarks/truncation.py runs/demo runs/resnet18 --figure docs/figures/truncation.png

Every run needs its dataset, its pipeline and its images. Networks are drawn from the same noise for every truncation.
Spread: distance to the originals' mean, in units of the originals' own. IoU: of the wrong predictions of two networks
of a group. Disagreement: share of the test examples on which two of them predict another class.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DPMSolverMultistepScheduler
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.similarity import measure_nearness, wrong_iou
from pdiff_hf.report.plots.style import color, new_figure
from pdiff_hf.tasks.evaluators import make_evaluator

TRUNCATIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.0)


class Figures(NamedTuple):
    """Of a group of networks; accuracy and disagreement in %."""

    accuracy: float
    spread: float
    iou: float
    disagreement: float


def measure(vectors: torch.Tensor, originals: torch.Tensor, evaluator: ParameterEvaluator) -> Figures:
    """Accuracy and diversity of networks `(n, D)`."""
    output = evaluator.predict(vectors)
    iou = wrong_iou(output.predictions, output.predictions, evaluator.labels.cpu())
    differ = torch.stack([(output.predictions != own).double().mean(1) for own in output.predictions])
    of_pairs = ~torch.eye(len(vectors), dtype=torch.bool)
    accuracy, disagreement = output.accuracy.double().mean().item(), differ[of_pairs].mean().item()
    spread = measure_nearness(vectors, originals).spread
    return Figures(100 * accuracy, spread, iou[of_pairs].mean().item(), 100 * disagreement)


def measure_run(run: Path, num_samples: int, steps: int, seed: int) -> dict[str, Figures]:
    """Figures of originals, evenly spread over the dataset, and of generated networks by their truncation."""
    dataset = ParameterDataset(run / "dataset")
    evaluator, originals = make_evaluator(dataset, "test"), dataset.vectors(rows=slice(None))
    pipe = PDiffPipeline.from_pretrained(run / "pipeline")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    options = {"batch_size": num_samples, "num_inference_steps": steps, "output_type": "pt"}
    rows = torch.linspace(0, len(originals) - 1, min(num_samples, len(originals))).round().long()
    found = {"originals": measure(originals[rows], originals, evaluator)}
    for truncation in TRUNCATIONS:
        generator = torch.Generator().manual_seed(seed)
        vectors = pipe(**options, truncation=truncation, generator=generator).parameters
        found[f"{truncation:g}"] = measure(vectors, originals, evaluator)
    return found


def make_table(name: str, found: Mapping[str, Figures]) -> Table:
    """A row for every truncation, below that of the originals."""
    table = Table("truncation", "accuracy, %", "minus originals", "spread", "IoU within", "disagree, %", title=name)
    reference = found["originals"].accuracy
    for key, (accuracy, *diversity, disagreement) in found.items():
        difference = "" if key == "originals" else f"{accuracy - reference:+.2f}"
        table.add_row(key, f"{accuracy:.2f}", difference, *(f"{v:.3f}" for v in diversity), f"{disagreement:.2f}")
    return table


def draw_curves(runs: Mapping[str, Mapping[str, Figures]]) -> Figure:
    """Points of accuracy gained over the originals against disagreement, a curve of truncations for each run."""
    figure, (axes,) = new_figure(False, 3.4)
    looks = (("vermillion", "o"), ("blue", "s"), ("green", "D"), ("purple", "^"))
    for (name, found), (hue, marker) in zip(runs.items(), looks, strict=False):
        reference = found["originals"]
        drawn = [found[f"{truncation:g}"] for truncation in TRUNCATIONS]
        gains = [of.accuracy - reference.accuracy for of in drawn]
        shares = [of.disagreement / reference.disagreement for of in drawn]
        axes.plot(shares, gains, marker=marker, markersize=4, color=color(hue), label=name)
    axes.axhline(0, color=color("muted"), linewidth=0.8)
    axes.axvline(1, color=color("muted"), linewidth=0.8)
    axes.set_xlabel("disagreement of two networks, originals = 1 (truncation 0 on the left, 1 on the right)")
    axes.set_ylabel("accuracy minus originals, points")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=color("text"))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--num_samples", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="PNG to write, with curves of up to four runs")
    args = parser.parse_args()
    found = {}
    for run in args.runs:
        name = run.parent.name if run.name.startswith("seed-") else run.name
        found[name] = measure_run(run, args.num_samples, args.num_inference_steps, args.seed)
        Console().print(make_table(name, found[name]))
    if args.figure:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        draw_curves(found).savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
