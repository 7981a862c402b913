"""Several runs of a task: are networks drawn for an unseen one as diverse, and as good together, as trained ones?

    pdiff run digits-subsets-runs --out runs/several
    python benchmarks/several_runs.py runs/several --seeds 0 1 2

Of a run with `collect.kind: tasks` and several runs per task. For every unseen task as many networks are made as were
trained on it: by the generator, and in the same latents by ridge regression from the classes' bits (kind and penalty
by validation tasks), which has one answer, and by the Gaussian of the residuals around it. *Ensemble*: accuracy of
averaged probabilities; *disagreement*: share of test examples on which two networks of a task differ, and *ratio* to
that of trained ones; *near*: distance, as functions, to the nearest network that was trained on, 1 for the trained
networks of unseen tasks; *copies*: share of those nearer than half of the least such distance of these. The last rows
are the same for tasks that were seen, beside those of their runs that were held out. Intervals over groups of tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from conditional_rows import Latents, best_ridge, by_group, linear, pairs, percents, train_pipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.similarity import squared_distances
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.results.text import ReportTable, markdown_table
from pdiff_hf.tasks.collect_tasks import ROLES
from pdiff_hf.tasks.evaluators import make_task_evaluator, open_task


class Tasks:
    """The tasks of a role, and what judges networks by their labels."""

    def __init__(self, run: Path, role: str, split: str):
        dataset = ParameterDataset(run / "dataset", ROLES[role] or None)
        self.evaluator = make_task_evaluator(dataset, split, open_task(dataset))
        self.vectors, self.rows, self.conditions = dataset.vectors(), self.evaluator.rows, dataset.conditions()
        number = len(self.evaluator.targets)
        self.distinct = torch.stack([self.conditions[self.rows == task][0] for task in range(number)])

    def accuracy(self, vectors: torch.Tensor) -> float:
        """Mean of networks `(T · n, D)`, n in a row for every task."""
        tasks = torch.arange(len(self.distinct)).repeat_interleave(len(vectors) // len(self.distinct))
        return self.evaluator.predict(vectors, population=tasks).accuracy.mean().item()

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Of networks `(B, D)` the logits `(B, N, 2)`."""
        return torch.cat([part.cpu() for _, part in self.evaluator.logits(vectors)])


@dataclass(frozen=True)
class Measured:
    """Networks of tasks, n of each: what is known by task `(T,)`, and of every network `(T, n)` its nearest seen."""

    accuracy: torch.Tensor
    ensemble: torch.Tensor
    disagreement: torch.Tensor
    nearest: torch.Tensor

    @classmethod
    def of(cls, tasks: Tasks, vectors: torch.Tensor, seen: torch.Tensor, which: torch.Tensor) -> Measured:
        """Networks `(T · n, D)` of the tasks `which` `(T,)`, beside functions seen `(S, N · 2)`."""
        logits = tasks.logits(vectors)
        labels, answers = tasks.evaluator.targets[which].cpu(), logits.argmax(-1).view(len(which), -1, logits.shape[1])
        together = logits.double().softmax(-1).view(*answers.shape, 2).mean(1).argmax(-1)
        number = answers.shape[1]
        differ = (answers[:, :, None] != answers[:, None]).double().mean(-1).sum((1, 2))
        nearest = squared_distances(functions(logits), seen).clamp(min=0).sqrt().amin(1).view(len(which), -1)
        right = (answers == labels[:, None]).double().mean((1, 2)), (together == labels).double().mean(1)
        return cls(*right, differ / max(1, number * (number - 1)), nearest)


def functions(logits: torch.Tensor) -> torch.Tensor:
    """Networks as functions `(B, N · 2)`: logits less their mean over the classes."""
    return (logits - logits.mean(-1, keepdim=True)).flatten(1)


def in_order(tasks: Tasks, number: int) -> torch.Tensor:
    """The first rows of every task, one task after the other."""
    return torch.cat([(tasks.rows == task).nonzero()[:number, 0] for task in range(len(tasks.distinct))])


def measure(run: Path, pipe, seed: int) -> dict[str, Measured]:
    """All ways of making networks for unseen tasks, and draws for seen ones."""
    dataset = ParameterDataset(run / "dataset")
    holdout_every = read_json(run / "pipeline" / "train_config.json")["autoencoder"]["holdout_every"]
    latents = Latents.read(pipe, dataset, holdout_every)
    unseen, val, known = Tasks(run, "unseen", "test"), Tasks(run, "validation", "val"), Tasks(run, "seen", "test")
    train, held_out = split_rows(len(dataset), holdout_every)
    seen = functions(known.logits(known.vectors[train]))
    number, every = len(unseen.rows) // len(unseen.distinct), torch.arange(len(unseen.distinct))

    def embeds(conditions: torch.Tensor) -> torch.Tensor:
        return pipe.condition_encoder(conditions)

    def score(ridge) -> float:
        return val.accuracy(latents.decode(ridge.mean(embeds(val.distinct))))

    ridge = best_ridge([linear, pairs], embeds(latents.conditions), latents.rows, score)
    repeated = embeds(unseen.distinct.repeat_interleave(number, 0))
    trained = unseen.vectors[in_order(unseen, number)]
    made = {
        "trained on the task": trained,
        "… through the autoencoder": latents.decode(latents.encode(trained)),
        "latents: ridge": latents.decode(ridge.mean(embeds(unseen.distinct))),
        "latents: Gaussian around ridge": latents.decode(ridge.draw(repeated, seed)),
        "generated": latents.draw(repeated, seed),
    }
    found = {name: Measured.of(unseen, vectors, seen, every) for name, vectors in made.items()}
    # One run of each of the seen tasks, held out, and a draw for the same task.
    own = known.rows[held_out]
    found["seen tasks: runs held out"] = Measured.of(known, known.vectors[held_out], seen, own)
    drawn = latents.draw(embeds(known.distinct[own]), seed)
    found["seen tasks: generated"] = Measured.of(known, drawn, seen, own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with several runs per task")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators that are trained anew")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    runs = []
    for seed in args.seeds or [None]:
        with tempfile.TemporaryDirectory() as folder:
            is_own = seed is None
            pipe = load_pipeline(args.run / "pipeline") if is_own else train_pipeline(args.run, Path(folder), seed)
            runs.append(measure(args.run, pipe, seed or 0))
    conditions = Tasks(args.run, "unseen", "test").distinct
    rows, numbers = [], {}
    for name in runs[0]:
        is_unseen = not name.startswith("seen")
        trained = "trained on the task" if is_unseen else "seen tasks: runs held out"
        mean = {
            key: torch.stack([getattr(run[name], key) for run in runs]).mean(0)
            for key in ("accuracy", "ensemble", "disagreement")
        }
        beside = {key: getattr(runs[0][trained], key) for key in mean}
        threshold = runs[0][trained].nearest.min() / 2
        near = torch.stack([run[name].nearest.mean() for run in runs]).mean() / runs[0][trained].nearest.mean()
        copies = torch.stack([(run[name].nearest < threshold).float().mean() for run in runs]).mean()
        several = is_unseen and runs[0][name].nearest.shape[1] > 1
        own = {"accuracy": mean["accuracy"].mean().item(), "near": near.item(), "copies": copies.item()}
        cells = [name, f"{100 * own['accuracy']:.2f}"]
        if is_unseen:
            difference = by_group(mean["ensemble"] - beside["ensemble"], conditions)
            own |= {"ensemble": mean["ensemble"].mean().item(), "ensemble_difference": difference.mean().item()}
            own["by_seed"] = [(run[name].ensemble - beside["ensemble"]).mean().item() for run in runs]
            cells += [f"{100 * own['ensemble']:.2f}", "" if name == trained else percents(difference)]
        else:
            cells += ["", ""]
        if several:
            ratio = mean["disagreement"].mean() / beside["disagreement"].mean()
            own |= {"disagreement": mean["disagreement"].mean().item(), "ratio": ratio.item()}
        cells += [f"{100 * own['disagreement']:.2f}", f"{own['ratio']:.2f}"] if several else ["", ""]
        rows.append([*cells, f"{near:.2f}", f"{100 * copies:.1f}"])
        numbers[name] = own
    header = [
        "networks",
        "accuracy, %",
        "ensemble, %",
        "minus trained ones, points (95 %)",
        "disagreement, %",
        "ratio",
    ]
    print("\n".join(markdown_table(ReportTable([*header, "near", "copies, %"], rows))[2:]))
    if args.out:
        args.out.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
