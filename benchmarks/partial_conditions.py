"""Networks for conditions of which something is left open, such as "three classes, cat among them".

    pdiff run digits-subsets --set diffusion.partial_conditions=0.5 --out runs/partial
    python benchmarks/partial_conditions.py runs/partial --seeds 0 1 2

Of a run with `collect.kind: tasks` and `diffusion.partial_conditions`. Of unseen tasks, something is said; `--draws`
networks are made of what is, and each is judged by the labels of the task that it fits best: of all subsets of the
classes, which says whether it is *consistent* with what was said, and of those that are, which gives its *accuracy*.
*Tasks*: how many different consistent ones the networks of a query are, over how many draws from all of them, each as
likely, would be. *Unseen*: share of the networks whose best consistent task was not seen.

Beside the generator, in the same latents: ridge regression from the same class labels, with parts hidden as in
training, which has one answer; the Gaussian of its residuals; and two ways that need no partial conditions, because
they first draw one of the consistent tasks: the same generator and ridge regression asked for that one, and the
network of a seen one as it is. Intervals are Student's t over queries.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from conditional_rows import ALPHAS, Latents, Ridge, best_ridge, linear, pairs, percents, train_pipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.results.text import ReportTable, markdown_table
from pdiff_hf.tasks.conditions import condition_labels
from pdiff_hf.tasks.evaluators import make_task_evaluator, open_task
from pdiff_hf.tasks.families_config import ROLES

# With which a row of the training is hidden several times for the regressions.
REPEATS = 8


def queries_of(conditions: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """What is said of tasks `(T, C)`, by its name `(T, C + 1)`: bits, and how many classes; NaN where it is open."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(conditions.shape, generator=generator)
    size = conditions.sum(1, keepdim=True)
    nothing = torch.full_like(conditions, torch.nan)
    # One class that is in it.
    (member,) = torch.where(conditions > 0, order, 2.0).topk(1, largest=False).indices.T
    one = nothing.scatter(1, member[:, None], 1.0)
    half = torch.where(order.argsort(1).argsort(1) < conditions.shape[1] // 2, conditions, torch.nan)
    return {
        "one class, and how many": torch.cat([one, size], 1),
        "half of the classes, in or not": torch.cat([half, torch.full_like(size, torch.nan)], 1),
        "how many": torch.cat([nothing, size], 1),
    }


class Judge:
    """All subsets of the classes as tasks, and networks' answers on test examples."""

    def __init__(self, run: Path):
        dataset = ParameterDataset(run / "dataset", ROLES["unseen"])
        task, spec = open_task(dataset), dataset.condition_spec
        self.evaluator: ParameterEvaluator = make_task_evaluator(dataset, "test", task)
        numbers = torch.arange(1, 2**spec.size - 1)
        self.tasks = (numbers[:, None] >> torch.arange(spec.size) & 1).float()
        labels = condition_labels(task.labels("test"), task.class_names, spec, self.tasks)
        self.signs = 2 * labels.float() - 1
        seen = ParameterDataset(run / "dataset").conditions()
        self.is_seen = (self.tasks[:, None] == seen.unique(dim=0)).all(2).any(1)
        _, rows = self.evaluator.rows.unique(return_inverse=True)
        self.distinct = torch.stack([dataset.conditions()[rows == row][0] for row in range(int(rows.max()) + 1)])

    def consistent(self, queries: torch.Tensor) -> torch.Tensor:
        """Which tasks are what is said `(Q, T)`."""
        complete = torch.cat([self.tasks, self.tasks.sum(1, keepdim=True)], 1)
        return ((complete == queries[:, None]) | queries[:, None].isnan()).all(2)

    def measure(self, vectors: torch.Tensor, consistent: torch.Tensor) -> dict[str, torch.Tensor]:
        """Networks `(Q · n, D)`, n in a row for every query: what they are found to be `(Q,)`."""
        answers = 2 * self.evaluator.predictions(vectors).cpu().float() - 1
        right = (answers @ self.signs.T / answers.shape[1] + 1) / 2
        number = len(vectors) // len(consistent)
        own = consistent.repeat_interleave(number, 0)
        accuracy, task = right.masked_fill(~own, -1).max(1)
        is_consistent = own.gather(1, right.argmax(1, keepdim=True))[:, 0]
        task = task.view(-1, number)
        # A network of no task has none to be counted.
        counted = torch.where(is_consistent.view(-1, number), task, -1)
        different = torch.tensor([len({*row} - {-1}) for row in counted.tolist()])
        sizes = consistent.sum(1)
        return {
            "accuracy": accuracy.view(-1, number).mean(1),
            "consistent": is_consistent.view(-1, number).float().mean(1),
            "tasks": different / (sizes * (1 - (1 - 1 / sizes) ** number)),
            "unseen": (~self.is_seen[task]).float().mean(1),
        }


def measure(run: Path, judge: Judge, pipe, draws: int, seed: int) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """By query and way, what networks are found to be."""
    dataset, encoder = ParameterDataset(run / "dataset"), pipe.condition_encoder
    config = read_json(run / "pipeline" / "train_config.json")
    latents = Latents.read(pipe, dataset, config["autoencoder"]["holdout_every"])
    vectors, stored = dataset.vectors(), dataset.conditions()
    complete = encoder(latents.conditions)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(REPEATS * len(complete), encoder.partial.num_noise, generator=generator)
    hidden = encoder.partial.hide(complete.repeat(REPEATS, 1), noise, config["diffusion"]["partial_conditions"])
    targets = latents.rows.repeat(REPEATS, 1)

    # Of a row, all repeats are on one side.
    held_out = torch.arange(len(complete)).repeat(REPEATS) % 10 == 0

    def score(ridge: Ridge) -> float:
        return -(ridge.mean(hidden[held_out]) - targets[held_out]).square().mean().item()

    ridge = best_ridge([linear, pairs], hidden[~held_out], targets[~held_out], score)
    of_complete = Ridge.fit(linear, complete, latents.rows, ALPHAS[0])
    found = {}
    for name, queries in queries_of(judge.distinct, 0).items():
        consistent = judge.consistent(queries)
        told = encoder(queries)
        repeated = told.repeat_interleave(draws, 0)
        chance = consistent.float().repeat_interleave(draws, 0)
        random = encoder(judge.tasks[chance.multinomial(1, generator=generator)[:, 0]])
        of_rows = ((stored[:, None] == judge.tasks).all(2).float() @ consistent.float().T).T
        of_rows = of_rows.repeat_interleave(draws, 0)
        made: dict[str, Callable[[], torch.Tensor]] = {
            "latents: ridge": lambda: latents.decode(ridge.mean(told)),  # noqa: B023 - called in this round
            "latents: Gaussian around ridge": lambda: latents.decode(ridge.draw(repeated, seed)),  # noqa: B023
            "**generated**": lambda: latents.draw(repeated, seed),  # noqa: B023
            "… guidance 2": lambda: latents.draw(repeated, seed, 2.0),  # noqa: B023
            "a consistent task drawn, then generated": lambda: latents.draw(random, seed),  # noqa: B023
            "… then ridge": lambda: latents.decode(of_complete.mean(random)),  # noqa: B023
            "… of seen ones, its network": lambda: vectors[of_rows.multinomial(1, generator=generator)[:, 0]],  # noqa: B023
        }
        answerable = bool((of_rows.sum(1) > 0).all())
        found[name] = {
            way: judge.measure(make(), consistent) for way, make in made.items() if answerable or "seen" not in way
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with diffusion.partial_conditions")
    parser.add_argument("--draws", type=int, default=16, help="networks of every query")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators that are trained anew")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    judge, runs = Judge(args.run), []
    for seed in args.seeds or [None]:
        with tempfile.TemporaryDirectory() as folder:
            is_own = seed is None
            pipe = load_pipeline(args.run / "pipeline") if is_own else train_pipeline(args.run, Path(folder), seed)
            runs.append(measure(args.run, judge, pipe, args.draws, seed or 0))
    rows, numbers = [], {}
    for query, ways in runs[0].items():
        for way in ways:
            own = {key: torch.stack([run[query][way][key].float() for run in runs]).mean(0) for key in ways[way]}
            cells = [percents(own["accuracy"]), percents(own["consistent"])]
            cells += [
                "" if way == "latents: ridge" else f"{own['tasks'].mean():.2f}",
                f"{100 * own['unseen'].mean():.0f}",
            ]
            rows.append([query, way, *cells])
            numbers[f"{query}: {way}"] = {key: values.mean().item() for key, values in own.items()}
    header = ["what is said", "networks", "accuracy, % (95 %)", "consistent, % (95 %)", "tasks", "unseen, %"]
    print("\n".join(markdown_table(ReportTable(header, rows))[2:]))
    if args.out:
        args.out.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
