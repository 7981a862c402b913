"""Networks for tasks that nobody trained, by several seeds of the generator, or with more and less guidance.

    pdiff run digits-subsets --out runs/digits-subsets
    python benchmarks/unseen_tasks.py runs/digits-subsets --seeds 0 1 2
    python benchmarks/unseen_tasks.py runs/digits-subsets --guidance 0 0.5 1 1.5 2 4

Of a run with `collect.kind: tasks`. The ways, what is chosen by which examples, and the intervals are those of its
report. Generators of `--seeds` are trained anew on the run's dataset; without it the run's own is judged. What does
not depend on the generator is judged once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.unseen_tasks.summary import average_seeds
from pdiff_hf.evaluation.unseen_tasks.verdict import tasks_verdict
from pdiff_hf.files import read_json
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.tasks import TaskResults
from pdiff_hf.results.tasks_table import accuracy_table, diversity_table
from pdiff_hf.results.text import markdown_table
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import recorded_section
from pdiff_hf.runs.stages import autoencoder_stage, diffusion_stage
from pdiff_hf.runs.unseen_tasks import conditions_of_unseen, evaluate_tasks
from pdiff_hf.runs.validation import parse_section
from pdiff_hf.tasks.evaluators import open_task


def make_pipeline(run: Path, folder: Path, seed: int) -> Path:
    """A pipeline as that of the run, trained with another seed on the same dataset."""
    dataset, config = ParameterDataset(run / "dataset"), read_json(run / "pipeline" / "train_config.json")
    autoencoder = parse_section(AUTOENCODER, {**config["autoencoder"], "seed": seed})
    diffusion = parse_section(DENOISER, {**config["diffusion"], "seed": seed})
    autoencoder_stage(dataset, folder / "autoencoder", autoencoder, open_task(dataset))
    diffusion_stage(dataset, folder / "autoencoder", folder / "pipeline", diffusion)
    return folder / "pipeline"


def judge(
    run: Path,
    pipeline: Path,
    folder: Path,
    seed: int,
    draws: int | None,
    guidance: float,
    known: TaskResults | None = None,
) -> TaskResults:
    """Networks of a pipeline for the run's unseen tasks, drawn into a folder and judged.

    What does not depend on the generator is taken of `known` results of another one.
    """
    dataset = ParameterDataset(run / "dataset")
    given = {"num_samples": draws, "guidance_scale": guidance, "seed": seed}
    drawn = recorded_section(run, "generate", given).model_dump()
    drawn["condition"] = conditions_of_unseen(dataset, drawn["num_samples"])
    drawn["num_samples"] = len(drawn["condition"])
    generate_networks(load_pipeline(pipeline), folder, dataset=dataset, **drawn)
    config = recorded_section(run, "evaluate", {"seed": seed})
    return evaluate_tasks(dataset, open_task(dataset), config, pipeline, folder, known=known).tasks


def show(results: TaskResults) -> None:
    """Print the tables of a report, and its verdict."""
    metrics = Metrics(tasks=results)
    for table in (accuracy_table(metrics), diversity_table(metrics)):
        print("\n".join([*markdown_table(table)[2:], ""]))
    print(tasks_verdict(results)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with collect.kind=tasks")
    parser.add_argument("--draws", type=int, help="networks for every task; as many as the run's by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators that are trained anew")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0], help="a table for every scale")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    found: dict[float, list[TaskResults]] = {scale: [] for scale in args.guidance}
    known = None
    for seed in args.seeds or [None]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            pipeline = args.run / "pipeline" if seed is None else make_pipeline(args.run, folder, seed)
            for number, (scale, results) in enumerate(found.items()):
                known = judge(args.run, pipeline, folder / str(number), seed or 0, args.draws, scale, known)
                results.append(known)
                accuracy = results[-1].unseen["generated"].accuracy
                print(f"seed {seed}, guidance {scale:g}: generated {100 * accuracy:.2f} %", flush=True)
    together = {scale: average_seeds(results) for scale, results in found.items()}
    for scale, results in together.items():
        print(
            f"\nguidance {scale:g}: {results.num_seen} seen, {results.num_validation} validation, "
            f"{results.num_unseen} unseen tasks; {results.draws} draws of each\n"
        )
        show(results)
    if args.out:
        numbers = {str(scale): results.to_dict() for scale, results in together.items()}
        args.out.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
