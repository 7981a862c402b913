"""What a recipe for a zoo of independent runs comes to, over seeds of its generator.

    python benchmarks/population_seeds.py runs/digits --seeds 0 1 2
    python benchmarks/population_seeds.py digits-runs --dataset runs/digits/dataset --set autoencoder.steps=1000

The networks stay; autoencoder, denoiser and draws are made anew for every seed with the settings of the run's recipe,
or of a named one. Beside the generated networks stand, from the same run, held-out originals, the seen ones themselves
and the simplest generators; p-diff as published is made once, by the first seed. Intervals are Student's t over the
seeds. Seconds are those of the stages, the report's among them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.summary import aggregate_seeds
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.results.metrics import METRICS_FILE, Metrics
from pdiff_hf.results.population_table import population_table
from pdiff_hf.results.text import markdown_table
from pdiff_hf.runs.evaluate import evaluate_run
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import autoencoder_stage, diffusion_stage
from pdiff_hf.tasks.evaluators import open_task


def make(source: Path | str, dataset: ParameterDataset, folder: Path, seed: int, overrides: list[str]) -> Metrics:
    """The metrics of a generator of this seed."""
    recipe, task = load_recipe(source, overrides, seed=seed), open_task(dataset)
    autoencoder, pipeline, generated = folder / "autoencoder", folder / "pipeline", folder / "generated"
    config = recipe.autoencoder.model_copy(update={"allow_poor_reconstruction": True})
    seconds = {}

    def timed(name: str, work) -> None:
        begin = time.perf_counter()
        work()
        seconds[name] = round(time.perf_counter() - begin, 1)

    timed("autoencoder", lambda: autoencoder_stage(dataset, autoencoder, config, task))
    timed("diffusion", lambda: diffusion_stage(dataset, autoencoder, pipeline, recipe.diffusion))
    options = {**recipe.generate.model_dump(), "seed": seed}
    timed("generate", lambda: generate_networks(load_pipeline(pipeline), generated, dataset=dataset, **options))
    places = {"pipeline_dir": pipeline, "generated_dir": generated, "output_dir": folder / "report"}
    timed("evaluate", lambda: evaluate_run(Run(folder), recipe.evaluate, dataset, task, **places))
    (folder / "seconds.json").write_text(json.dumps(seconds))
    print(f"seed {seed}: {seconds}", flush=True)
    return Metrics.read(folder / "report" / METRICS_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="folder of a run, or a recipe with --dataset")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="receives a folder for every seed")
    arguments = parser.parse_args()
    source = arguments.recipe if arguments.dataset else Path(arguments.recipe) / "recipe.yaml"
    dataset = ParameterDataset(arguments.dataset or Path(arguments.recipe) / "dataset")
    found = {}
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        if (folder / "report" / METRICS_FILE).is_file():
            found[seed] = Metrics.read(folder / "report" / METRICS_FILE)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rivals = [] if found else ["evaluate.rivals=[pdiff, pdiff_aligned]"]
        overrides = [*arguments.overrides, *(rivals or ["evaluate.rivals=[]"])]
        found[seed] = make(source, dataset, folder, seed, overrides)
        print(found[seed].verdict, flush=True)
    first = next(iter(found.values()))
    metrics = aggregate_seeds(found) if len(found) > 1 else first
    console = Console(width=240)
    for title, shown in (("all seeds", metrics), (f"seed {next(iter(found))}", first)):
        console.print("\n".join(markdown_table(population_table(shown, title=title))), markup=False)
    console.print(metrics.verdict, markup=False)


if __name__ == "__main__":
    main()
