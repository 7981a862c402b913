"""What successive halving costs, and what it loses against evaluating all networks on all validation images.

    python benchmarks/selection.py                                   # digits-convnet: trained first, some minutes
    python benchmarks/selection.py --runs runs/a runs/b --seeds 0 1 2   # folders of finished runs

Cost is counted in networks times images and as wall time, both relative to evaluating 100 networks on all images in
the same run. Rank is that of the winner among all draws, regret the best val accuracy minus that of the winner, in
points (for 100 random draws: the mean over ten such hundreds). `shuffled` is the same halving with the images in a
class-stratified random order, and `nll` the same with networks ranked by NLL on all rungs but the last.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from rich.console import Console
from rich.table import Table

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.folder import read_layout
from pdiff_hf.evaluation.choice import NUM_PILOTS, Choice, choose_networks, make_rungs
from pdiff_hf.evaluation.evaluator import EvaluatorOutput, ParameterEvaluator
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.tasks.evaluators import open_task


def ranking(accuracy: torch.Tensor, nll: torch.Tensor) -> torch.Tensor:
    """Positions from the best accuracy to the worst, ties by NLL."""
    order = nll.argsort(stable=True)
    return order[accuracy[order].argsort(descending=True, stable=True)]


def draw(run: Path, num: int, seed: int) -> torch.Tensor:
    pipeline = load_pipeline(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(part) for part in torch.arange(num).split(256)]
    return torch.cat([pipeline(size, 20, generator, output_type="pt").parameters.cpu() for size in sizes])


def stratified(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """An order of the images whose prefixes hold all classes in proportion."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        own = shuffled[labels[shuffled] == label]
        position[own] = (torch.arange(len(own)) + torch.rand(len(own), generator=generator)).double() / len(own)
    return position.argsort()


def halve(output: EvaluatorOutput, labels: torch.Tensor, order: torch.Tensor, rungs: list, by_nll: bool) -> int:
    """The winner of successive halving, from what is known of all networks on all images."""
    right = (output.predictions == labels).double()[:, order]
    losses = output.losses.double()[:, order]
    rows = torch.arange(len(right))
    for networks, images in rungs:
        rows = rows[:networks]
        accuracy, nll = right[rows, :images].mean(1), losses[rows, :images].mean(1)
        is_last = images == len(labels)
        rows = rows[ranking(accuracy if is_last or not by_nll else torch.zeros_like(nll), nll)]
    return int(rows[0])


def main() -> None:
    """Run and print one row for every run and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, help="by default a new run of digits-convnet")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--top", type=int, default=5)
    args = parser.parse_args()
    if args.runs is None:
        args.runs = [Path(tempfile.mkdtemp()) / "digits-convnet"]
        run_recipe(load_recipe("digits-convnet"), args.runs[0], print)

    table = Table(title=f"the best of {args.networks} draws, {torch.get_num_threads()} threads")
    table.add_column("run, seed")
    columns = ("cost", "seconds", "all / 100 on all (s)", "times 100 on all", "rank", "regret", "top regret")
    for column in (*columns, "regret of 100 draws", "shuffled", "shuffled, nll", "nll"):
        table.add_column(column, justify="right")
    for run in args.runs:
        layout, base_model = read_layout(run / "dataset")
        images, labels = open_task(ParameterDataset(run / "dataset")).arrays("val")
        model = base_model.build()
        halving = ParameterEvaluator(model, layout, images, labels, batch_size=min(500, -(-len(images) // 20)))
        for seed in args.seeds:
            vectors = draw(run, args.networks, seed)
            # 1. Wall times; every one includes the part of the forward pass that is common to all networks
            begin = time.perf_counter()
            selection = choose_networks(halving.reordered(torch.arange(len(labels))), vectors, args.top)
            select_seconds = time.perf_counter() - begin
            full = ParameterEvaluator(model, layout, images, labels)
            begin = time.perf_counter()
            full.predict(vectors[:100])
            hundred_seconds = time.perf_counter() - begin
            begin = time.perf_counter()
            output = full.reordered(torch.arange(len(labels))).predict(vectors)
            all_seconds = time.perf_counter() - begin

            # 2. What is lost
            table.add_row(
                f"{run.name}, {seed}",
                f"{cost(selection, len(labels)) / 100:.2f}",
                f"{select_seconds:.2f}",
                f"{all_seconds:.2f} / {hundred_seconds:.2f}",
                f"{select_seconds / hundred_seconds:.2f}",
                *losses_of(selection, output, labels, halving.batch_size),
            )
    Console(width=180).print(table)


def cost(selection: Choice, num_images: int) -> float:
    """Evaluations of a network on all images that a selection is worth."""
    rungs = sum(networks * images for networks, images in selection.rungs)
    return selection.num_pilots + rungs / num_images


def losses_of(selection: Choice, output: EvaluatorOutput, labels: torch.Tensor, batch_size: int) -> list[str]:
    """Rank and regrets of a selection and of its alternatives, as cells of the table."""
    best = ranking(output.accuracy, output.nll)
    accuracy = output.accuracy.double()
    top = len(selection.rows)
    rungs = make_rungs(len(accuracy), len(labels), batch_size, top)
    order = ranking((output.predictions[:NUM_PILOTS] == labels).double().var(0), -output.losses[:NUM_PILOTS].std(0))
    alternatives = [
        *(accuracy[halve(output, labels, stratified(labels, 0), rungs, by_nll)] for by_nll in (False, True)),
        accuracy[halve(output, labels, order, rungs, by_nll=True)],
    ]
    hundreds = torch.stack([part.max() for part in accuracy.split(100)]).mean()
    return [
        str(int((best == selection.rows[0]).nonzero())),
        points(accuracy[best[0]] - accuracy[selection.rows[0]]),
        points(accuracy[best[:top]].mean() - accuracy[selection.rows].mean()),
        points(accuracy[best[0]] - hundreds),
        *(points(accuracy[best[0]] - found) for found in alternatives),
    ]


def points(difference: torch.Tensor) -> str:
    return f"{100 * difference.item():.2f}"


if __name__ == "__main__":
    main()
