"""Networks of a wanted accuracy, or calibration error: what was wanted against what was got.

    pdiff run digits-accuracy --out runs/accuracy
    python benchmarks/metric_condition.py runs/accuracy --seeds 0 1 2 --plot docs/images/metric-condition.png

Of a run with `collect.metric: [val_accuracy]`, or `[val_ece]`, of which the same is measured. Accuracies are wanted
that are evenly spaced between the lowest and the highest one seen; `--draws` networks are made of each, and judged
on the validation examples, of which the condition is, and on test examples. Beside the generator: the seen networks
with the nearest accuracies, as they are; in the same latents ridge regression from the accuracy (linear or cubic,
kind and penalty by networks held out), which has one answer, and the Gaussian of the residuals around it. *Rank
correlation*: Spearman's of wanted and got, of the means of every wanted accuracy, and over all networks; *error*:
mean of |got - wanted|; *disagreement*: share of test examples on which two networks of a wanted accuracy differ, and
*ratio* to that of the nearest seen ones; *near*: distance, as functions, to the nearest network that was trained on,
networks held out being 1; *copies*: share of those nearer than half of the least such distance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats import spearmanr

from conditional_rows import Latents, Ridge, best_ridge, linear, train_pipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.similarity import squared_distances
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.results.text import ReportTable, markdown_table
from pdiff_hf.tasks.evaluators import make_evaluator, open_task

NUM_WANTED = 16
# What is wanted, and what it is called.
METRICS = {"val_accuracy": "accuracy", "val_ece": "ece"}


def cubic(values: torch.Tensor) -> torch.Tensor:
    """A constant, the values, and their squares and cubes `(B, 1 + 3n)`."""
    return linear(torch.cat([values, values**2, values**3], 1))


def functions(evaluator: ParameterEvaluator, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers `(B, N)` of networks, and what they are as functions `(B, N · classes)`."""
    logits = torch.cat([part.cpu() for _, part in evaluator.logits(vectors)])
    return logits.argmax(-1), (logits - logits.mean(-1, keepdim=True)).flatten(1)


def metric_of(dataset: ParameterDataset) -> str:
    """The name in an [`EvaluatorOutput`] of the one number that conditions of a dataset are.

    Raises:
        ValueError: they are something else.
    """
    spec = dataset.condition_spec
    if spec is None or spec.kind != "metric" or len(spec.names) != 1 or spec.names[0] not in METRICS:
        raise ValueError(
            f"{dataset.folder}: expected conditions of one of {', '.join(METRICS)}, found "
            f"{'none' if spec is None else spec.summary}; collect with collect.metric=[val_accuracy]."
        )
    return METRICS[spec.names[0]]


class Wanted:
    """What networks for wanted accuracies, n in a row for each, are found to be."""

    def __init__(self, run: Path, draws: int):
        self.dataset, self.draws = ParameterDataset(run / "dataset"), draws
        self.metric = metric_of(self.dataset)
        task = open_task(self.dataset)
        self.val, self.test = (make_evaluator(self.dataset, split, task) for split in ("val", "test"))
        self.holdout_every = read_json(run / "pipeline" / "train_config.json")["autoencoder"]["holdout_every"]
        train, held_out = split_rows(len(self.dataset), self.holdout_every)
        vectors, accuracies = self.dataset.vectors(), self.dataset.conditions()[:, 0]
        self.seen, self.seen_accuracies = vectors[train], accuracies[train]
        self.held_out, self.held_out_accuracies = vectors[held_out], accuracies[held_out]
        self.accuracies = torch.linspace(accuracies.min(), accuracies.max(), NUM_WANTED)
        self.of_seen = functions(self.test, self.seen)[1]
        nearest = squared_distances(functions(self.test, self.held_out)[1], self.of_seen).clamp(min=0).sqrt().amin(1)
        self.reference, self.threshold = nearest.mean(), nearest.min() / 2

    def got(self, evaluator: ParameterEvaluator, vectors: torch.Tensor) -> torch.Tensor:
        """The accuracy, or what else is wanted, of networks `(B, D)`."""
        return getattr(evaluator.predict(vectors), self.metric).cpu()

    def nearest(self) -> torch.Tensor:
        """The seen networks with the nearest accuracies, as many of each as are drawn `(W · n, D)`."""
        distances = (self.accuracies[:, None] - self.seen_accuracies).abs()
        return self.seen[distances.topk(self.draws, largest=False).indices.flatten()]

    def measure(self, vectors: torch.Tensor) -> dict:
        """Networks `(W · n, D)`, n of each wanted accuracy."""
        number = len(vectors) // len(self.accuracies)
        wanted = self.accuracies.repeat_interleave(number)
        val, test = (self.got(split, vectors) for split in (self.val, self.test))
        answers, own = functions(self.test, vectors)
        nearest = squared_distances(own, self.of_seen).clamp(min=0).sqrt().amin(1)
        answers = answers.view(len(self.accuracies), number, -1)
        differ = (answers[:, :, None] != answers[:, None]).double().mean(-1).sum((1, 2)) / max(
            1, number * (number - 1)
        )
        return {
            "rank_correlation": spearmanr(wanted, val).statistic.item(),
            "rank_correlation_test": spearmanr(wanted, test).statistic.item(),
            "rank_correlation_of_means": spearmanr(self.accuracies, val.view(-1, number).mean(1)).statistic.item(),
            "error": (val - wanted).abs().mean().item(),
            "spread": val.view(-1, number).std(1).mean().item() if number > 1 else None,
            "disagreement": differ.mean().item() if number > 1 else None,
            "near": (nearest.mean() / self.reference).item(),
            "copies": (nearest < self.threshold).double().mean().item(),
            "got": val.view(-1, number).mean(1).tolist(),
        }


def measure(wanted: Wanted, pipe, seed: int) -> dict[str, dict]:
    """All ways of making networks of wanted accuracies."""
    latents = Latents.read(pipe, wanted.dataset, wanted.holdout_every)

    def told(accuracies: torch.Tensor) -> torch.Tensor:
        return pipe.condition_encoder(accuracies[:, None])

    def score(ridge: Ridge) -> float:
        got = wanted.got(wanted.val, latents.decode(ridge.mean(told(wanted.held_out_accuracies))))
        return -(got - wanted.held_out_accuracies).abs().mean().item()

    ridge = best_ridge([linear, cubic], pipe.condition_encoder(latents.conditions), latents.rows, score)
    repeated = told(wanted.accuracies.repeat_interleave(wanted.draws))
    made: dict[str, Callable[[], torch.Tensor]] = {
        "seen, of the nearest accuracy": wanted.nearest,
        "… through the autoencoder": lambda: latents.decode(latents.encode(wanted.nearest())),
        "latents: ridge": lambda: latents.decode(ridge.mean(told(wanted.accuracies))),
        "latents: Gaussian around ridge": lambda: latents.decode(ridge.draw(repeated, seed)),
        "generated": lambda: latents.draw(repeated, seed),
    }
    return {name: wanted.measure(make()) for name, make in made.items()}


def average(runs: list[dict[str, dict]], name: str, key: str) -> float | None:
    """Of a number over the seeds."""
    values = [run[name][key] for run in runs]
    return None if values[0] is None else sum(values) / len(values)


def plot(runs: list[dict[str, dict]], wanted: Wanted, path: Path) -> None:
    """Wanted against got, means over seeds and draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{wanted.metric} wanted", ylabel=f"{wanted.metric} got")
    ends = (0, 1 if wanted.metric == "accuracy" else 1.2 * wanted.accuracies.max().item())
    axes.plot(ends, ends, color="0.8", linewidth=1)
    for name in runs[0]:
        got = torch.tensor([run[name]["got"] for run in runs]).mean(0)
        axes.plot(wanted.accuracies, got, marker="o", markersize=3, label=name)
    axes.set(xlim=ends, ylim=ends)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with collect.metric")
    parser.add_argument("--draws", type=int, default=16, help="networks of every wanted accuracy")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators that are trained anew")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    try:
        wanted, runs = Wanted(args.run, args.draws), []
    except ValueError as error:
        parser.error(str(error))
    for seed in args.seeds or [None]:
        with tempfile.TemporaryDirectory() as folder:
            is_own = seed is None
            pipe = load_pipeline(args.run / "pipeline") if is_own else train_pipeline(args.run, Path(folder), seed)
            runs.append(measure(wanted, pipe, seed or 0))
    reference, rows = runs[0]["seen, of the nearest accuracy"]["disagreement"], []
    for name in runs[0]:
        own = {key: average(runs, name, key) for key in runs[0][name] if key != "got"}
        row = [
            name,
            f"{own['rank_correlation_of_means']:.3f}",
            f"{own['rank_correlation']:.3f}",
            f"{own['rank_correlation_test']:.3f}",
            f"{100 * own['error']:.1f}",
        ]
        several = own["disagreement"] is not None
        row += [f"{100 * own['spread']:.1f}", f"{100 * own['disagreement']:.1f}"] if several else ["", ""]
        row += [f"{own['disagreement'] / reference:.2f}" if several else ""]
        rows.append([*row, f"{own['near']:.2f}", f"{100 * own['copies']:.1f}"])
    header = [
        "networks",
        "rank correlation, means",
        "… of single networks",
        "… on test",
        "error, points",
        "spread, points",
        "disagreement, %",
        "ratio",
    ]
    print("\n".join(markdown_table(ReportTable([*header, "near", "copies, %"], rows))[2:]))
    by_seed = [round(run["generated"]["rank_correlation"], 4) for run in runs]
    print(f"\nwanted {wanted.accuracies.min():.3f} to {wanted.accuracies.max():.3f}; generated by seed {by_seed}")
    if args.plot:
        plot(runs, wanted, args.plot)
    if args.out:
        numbers = {"wanted": wanted.accuracies.tolist(), "seeds": runs}
        args.out.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
