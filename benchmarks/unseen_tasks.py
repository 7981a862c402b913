"""Networks for tasks that nobody trained: generated ones beside what needs no generator.

    pdiff run digits-subsets --out runs/digits-subsets
    python benchmarks/unseen_tasks.py runs/digits-subsets --seeds 0 1 2

Of a run with `collect.kind: tasks`, whose tasks are subsets of the classes. Every network is judged by the labels of
its own task on the test examples. Ridge regressions are from the classes' bits (±1, `pairs`: and their products) to
weights, or to the latents of the run's autoencoder, fitted to all seen networks; what regularises them is the best on
networks of validation tasks and validation examples. *Recovered* is (accuracy − majority) / (oracle − majority), the
oracle a network trained on the task. Intervals are Student's t over groups {S, complement} of tasks, paired where they
are of a difference. The run's own generator has its own seed; those of `--seeds` are trained anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pdiff_hf import PDiffPipeline
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.intervals import sample_mean_interval
from pdiff_hf.files import read_json
from pdiff_hf.models.auto import AUTOENCODER, DENOISER, connect_network
from pdiff_hf.pipelines.sampling import load_pipeline, make_scheduler
from pdiff_hf.results.text import ReportTable, markdown_table
from pdiff_hf.runs.stages import autoencoder_stage, diffusion_stage
from pdiff_hf.runs.validation import parse_section
from pdiff_hf.tasks.collect_tasks import ROLES
from pdiff_hf.tasks.evaluators import make_task_evaluator, open_task

ALPHAS = [10.0**power for power in range(-4, 5)]
# Of kernels exp(-d / length), d the number of classes in which subsets differ.
LENGTHS = (1.0, 2.0, 4.0)
STEPS = 20


@dataclass(frozen=True)
class Tasks:
    """Networks of tasks of one role, and what judges networks by the labels of these tasks."""

    vectors: torch.Tensor
    conditions: torch.Tensor
    rows: torch.Tensor
    distinct: torch.Tensor
    judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    majority: torch.Tensor

    @classmethod
    def read(cls, run: Path, role: str, split: str) -> Tasks:
        """Those of a run's tasks of a role, judged on a split of the examples."""
        dataset = ParameterDataset(run / "dataset", ROLES[role] or None)
        task = open_task(dataset)
        evaluator, train = make_task_evaluator(dataset, split, task), make_task_evaluator(dataset, "train", task)
        conditions, rows = dataset.conditions(), evaluator.rows
        distinct = torch.stack([conditions[rows == row][0] for row in range(len(evaluator.targets))])
        answer = (train.targets.float().mean(1) > 0.5).long()
        majority = (evaluator.targets == answer[:, None]).float().mean(1)

        def judge(vectors: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
            return evaluator.predict(vectors, population=of).accuracy

        return cls(dataset.vectors(), conditions, rows, distinct, judge, majority)

    def __len__(self) -> int:
        return len(self.distinct)

    def accuracy(self, vectors: torch.Tensor) -> torch.Tensor:
        """Of networks `(T · n, D)`, n in a row for every task, the mean `(T,)`."""
        each = len(vectors) // len(self)
        return self.judge(vectors, torch.arange(len(self)).repeat_interleave(each)).view(-1, each).mean(1)

    def of_rows(self, vectors: torch.Tensor) -> torch.Tensor:
        """Of networks `(K, D)` for the tasks of the rows, the mean accuracy `(T,)` of each task's."""
        found = self.judge(vectors, self.rows)
        return torch.stack([found[self.rows == row].mean() for row in range(len(self))])


def features(conditions: torch.Tensor, pairs: bool) -> torch.Tensor:
    """A constant, the bits as ±1, and with `pairs` the products of two of them `(T, F)`."""
    signs = 2 * conditions.double() - 1
    columns = [torch.ones(len(signs), 1, dtype=signs.dtype), signs]
    if pairs:
        first, second = torch.triu_indices(signs.shape[1], signs.shape[1], 1)
        columns.append(signs[:, first] * signs[:, second])
    return torch.cat(columns, 1)


def ridge(seen: Tasks, targets: torch.Tensor, alpha: float, pairs: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Conditions → targets `(T, d)`, by ridge regression of all but the constant."""
    x, y = features(seen.conditions, pairs), targets.double()
    penalty = alpha * torch.eye(x.shape[1], dtype=x.dtype)
    penalty[0, 0] = 0
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    return lambda conditions: (features(conditions, pairs) @ weights).float()


def kernel_ridge(
    seen: Tasks, targets: torch.Tensor, alpha: float, length: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Conditions → targets `(T, d)`, by kernel ridge regression around their mean."""
    mean = targets.double().mean(0)

    def kernel(conditions: torch.Tensor) -> torch.Tensor:
        return (-torch.cdist(conditions.double(), seen.conditions.double(), p=1) / length).exp()

    gram = kernel(seen.conditions) + alpha * torch.eye(len(seen.conditions), dtype=torch.float64)
    weights = torch.linalg.solve(gram, targets.double() - mean)
    return lambda conditions: (mean + kernel(conditions) @ weights).float()


def regressions(seen: Tasks, val: Tasks, targets: torch.Tensor, decode: Callable) -> dict[str, Callable]:
    """By its name the best regression of every kind, on the validation tasks."""
    found = {}
    kinds = {
        "ridge, linear": (ridge, [False]),
        "ridge, pairs": (ridge, [True]),
        "kernel ridge": (kernel_ridge, LENGTHS),
    }
    for name, (make, options) in kinds.items():
        made = [make(seen, targets, alpha, option) for alpha in ALPHAS for option in options]
        best = max(made, key=lambda predict: val.accuracy(decode(predict(val.distinct))).mean())
        found[name] = lambda conditions, best=best: decode(best(conditions))
    return found


def nearest_seen(seen: Tasks, conditions: torch.Tensor) -> list[torch.Tensor]:
    """Of every condition the rows of the seen tasks that differ in the fewest classes."""
    distances = torch.cdist(conditions, seen.conditions, p=1)
    return [(row == row.min()).nonzero()[:, 0] for row in distances]


def without_generator(seen: Tasks, val: Tasks, unseen: Tasks) -> dict[str, torch.Tensor]:
    """Accuracies `(T,)` on unseen tasks of what is made of the seen networks' weights."""
    near = nearest_seen(seen, unseen.distinct)
    found = {
        "oracle: trained on the task": unseen.of_rows(unseen.vectors),
        "majority": unseen.majority,
        "nearest seen": torch.stack(
            [unseen.judge(seen.vectors[rows], torch.full_like(rows, task)).mean() for task, rows in enumerate(near)]
        ),
        "mean of the nearest seen": unseen.accuracy(torch.stack([seen.vectors[rows].mean(0) for rows in near])),
        "mean of all seen": unseen.accuracy(seen.vectors.mean(0).expand(len(unseen), -1)),
    }
    for name, predict in regressions(seen, val, seen.vectors, lambda vectors: vectors).items():
        found[f"weights: {name}"] = unseen.accuracy(predict(unseen.distinct))
    return found


def with_generator(
    pipe: PDiffPipeline, seen: Tasks, val: Tasks, unseen: Tasks, base_model, draws: int, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Accuracies `(T,)` on unseen tasks of networks of a pipeline and of its latents; and seconds."""
    autoencoder = pipe.autoencoder
    connect_network(autoencoder, base_model)
    pipe.scheduler = make_scheduler("dpmsolver++", pipe.scheduler, STEPS)

    @torch.no_grad()
    def decode(latents: torch.Tensor) -> torch.Tensor:
        scaled = autoencoder.unscale_latents(latents.view(-1, *autoencoder.latent_shape))
        return torch.cat([*autoencoder.decode_rows(scaled)])

    def draw(conditions: torch.Tensor, truncation: float = 1.0) -> torch.Tensor:
        embeds = pipe.condition_encoder(conditions.repeat_interleave(draws, 0))
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": STEPS, "generator": generator, "output_type": "pt", "truncation": truncation}
        return pipe(len(embeds), condition_embeds=embeds, **options).parameters

    with torch.no_grad():
        latents = autoencoder.scale_latents(autoencoder.encode_rows(seen.vectors)).flatten(1)
        written = decode(autoencoder.scale_latents(autoencoder.encode_rows(unseen.vectors)))
    found = {"oracle's network through the autoencoder": unseen.of_rows(written)}
    for name, predict in regressions(seen, val, latents, decode).items():
        found[f"latents: {name}"] = unseen.accuracy(predict(unseen.distinct))
    begin = time.perf_counter()
    networks = draw(unseen.distinct)
    seconds = {"drawing a network": (time.perf_counter() - begin) / len(networks)}
    found["generated"] = unseen.accuracy(networks)
    found["generated, truncation 0: what its regression expects"] = unseen.accuracy(draw(unseen.distinct, 0.0))
    order = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))
    others = unseen.distinct.clone()
    others[order] = unseen.distinct[order.roll(1)]
    found["generated for another task, drawn at random"] = unseen.accuracy(draw(others))
    return found, seconds


def make_pipeline(run: Path, folder: Path, seed: int) -> PDiffPipeline:
    """A pipeline as that of the run, trained with another seed on the same dataset."""
    dataset, config = ParameterDataset(run / "dataset"), read_json(run / "pipeline" / "train_config.json")
    autoencoder = parse_section(AUTOENCODER, {**config["autoencoder"], "seed": seed})
    diffusion = parse_section(DENOISER, {**config["diffusion"], "seed": seed})
    autoencoder_stage(dataset, folder / "autoencoder", autoencoder, open_task(dataset))
    diffusion_stage(dataset, folder / "autoencoder", folder / "pipeline", diffusion)
    return load_pipeline(folder / "pipeline")


def by_group(values: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    """Means over a task and its complement where both are there: they are no independent draws."""
    keys = [min(tuple(row), tuple(1 - bit for bit in row)) for row in conditions.int().tolist()]
    groups = [[index for index, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]
    return torch.stack([values[rows].mean() for rows in groups])


def table(found: dict[str, torch.Tensor], conditions: torch.Tensor) -> tuple[str, list[dict]]:
    """Every way's accuracy, what it recovers and its difference to the generated networks."""
    grouped = {name: by_group(values.double(), conditions) for name, values in found.items()}
    oracle, majority = grouped["oracle: trained on the task"], grouped["majority"]
    rows = []
    for name, values in grouped.items():
        row = {"way": name, "accuracy": values.mean().item(), "worst": found[name].min().item()}
        row["ci95"] = sample_mean_interval(values)
        row["recovered"] = ((values - majority).mean() / (oracle - majority).mean()).item()
        difference = grouped["generated"] - values
        row |= {"generated_minus": difference.mean().item(), "difference_ci95": sample_mean_interval(difference)}
        rows.append(row)
    header = ["on unseen tasks", "accuracy, % (95 %)", "worst task", "recovered", "generated minus it, points (95 %)"]

    def percents(interval: list[float]) -> str:
        return "{:.2f} to {:.2f}".format(*(100 * end for end in interval))

    cells = [
        [
            row["way"],
            f"{100 * row['accuracy']:.2f} ({percents(row['ci95'])})",
            f"{100 * row['worst']:.1f}",
            f"{row['recovered']:.3f}",
            ""
            if row["way"] == "generated"
            else f"{100 * row['generated_minus']:+.2f} ({percents(row['difference_ci95'])})",
        ]
        for row in rows
    ]
    return "\n".join(markdown_table(ReportTable(header, cells))[2:]), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with collect.kind=tasks")
    parser.add_argument("--draws", type=int, default=8, help="networks for every task")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators that are trained anew")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    seen, unseen = Tasks.read(args.run, "seen", "val"), Tasks.read(args.run, "unseen", "test")
    val = Tasks.read(args.run, "validation", "val")
    base_model = ParameterDataset(args.run / "dataset").base_model
    found, runs, seconds = without_generator(seen, val, unseen), [], {}
    for seed in args.seeds or [None]:
        with tempfile.TemporaryDirectory() as folder:
            pipe = (
                load_pipeline(args.run / "pipeline") if seed is None else make_pipeline(args.run, Path(folder), seed)
            )
            own, seconds = with_generator(pipe, seen, val, unseen, base_model, args.draws, seed or 0)
        runs.append(own)
        print(f"seed {seed}: " + ", ".join(f"{name} {100 * row.mean():.2f}" for name, row in own.items()), flush=True)
    found |= {name: torch.stack([own[name] for own in runs]).mean(0) for name in runs[0]}
    text, rows = table(found, unseen.distinct)
    print(
        f"\n{len(seen)} seen, {len(val)} validation, {len(unseen)} unseen tasks; {args.draws} draws of each\n\n{text}"
    )
    print("".join(f"\n{name}: {value:.5f} s" for name, value in seconds.items()))
    if args.out:
        numbers = {"rows": rows, "seeds": [{name: row.mean().item() for name, row in own.items()} for own in runs]}
        args.out.write_text(json.dumps({**numbers, "seconds": seconds}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
