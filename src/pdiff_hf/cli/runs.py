"""Runs: a whole one, its stages up to the pipeline, and many along the axes of an ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import (
    AsJson,
    Preset,
    Profile,
    Seed,
    Seeds,
    Set,
    TaskSpec,
    Trusted,
    app,
    command,
    console,
    line_printer,
    print_json,
    quiet,
)
from .checks import check_dataset, parse_given_task

if TYPE_CHECKING:
    from ..results.metrics import Metrics
    from ..runs.recipe import Recipe

RECIPE_HELP = "A recipe's name, <network>-<selection>-<data>, or a YAML file; see `pdiff recipes`."


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes that begin so: for the shell, which asks at every press of Tab."""
    from ..runs.recipe_parts import named_recipes

    return [name for name in named_recipes() if name.startswith(incomplete)]


# What `pdiff demo` does, by name: recipe, folder in that of the first, and what is smaller or left out.
DEMO = {
    "one training run": ("digits-mlp", "", ["evaluate.fine_tune=false", "evaluate.held_out=[]"]),
    "independent runs": (
        "digits-runs",
        "independent",
        [
            "collect.runs=240",
            "autoencoder.steps=600",
            "autoencoder.latent_channels=64",
            "diffusion.steps=100",
            "evaluate.held_out=[]",
            "evaluate.rivals=[]",
        ],
    ),
}


# Networks of tasks that generators are not trained for, in folders of the dataset.
OTHER_ROLES = [("validation", "num_validation"), ("unseen", "num_unseen")]


def _execute(
    runs: Mapping[Path, Recipe], line: Callable[[str], None], as_json: bool
) -> Iterator[tuple[Path, Metrics | None]]:
    """Carry out recipes in their folders, one after another, and give what each has found."""
    from ..runs.folder import open_run
    from ..runs.recipe import fit_recipe

    # Another run in the last folder is noticed before the first has taken its time.
    for folder, recipe in runs.items():
        recipe.task.source_folder()
        open_run(fit_recipe(recipe)[0], folder)
    quiet()
    from ..runs.stages import run_recipe
    from .live import live_stages

    for folder, recipe in runs.items():
        with live_stages(folder, as_json):
            found = run_recipe(recipe, folder, line)
        yield folder, found


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Two runs on embedded data, side by side: perceptrons of one training, and of 240 independent ones."""
    from ..runs.recipe import load_recipe

    folders = {out / folder: name for name, (_, folder, _) in DEMO.items()}
    recipes = {out / folder: load_recipe(recipe, given, seed) for recipe, folder, given in DEMO.values()}
    line = line_printer(as_json)
    found = {folders[folder]: metrics for folder, metrics in _execute(recipes, line, as_json)}
    if not as_json:
        from ..report.side_by_side import compare_runs

        console.print(compare_runs(found))
    for folder, name in folders.items():
        line(f"Report of {name}: {folder / 'report' / 'report.html'}")
    line(f"Left out: fine-tuning for as long. `pdiff evaluate {out} --fine-tune` adds it.")
    line("Next:")
    for words in next_commands(out):
        line(f"  {command(*words)}")
    print_json({name: metrics.to_dict() for name, metrics in found.items()}, as_json)


def next_commands(out: Path) -> list[tuple[str | Path, ...]]:
    """Three commands to go on with after the demo in `out`: a page of its networks, an inspection, unseen tasks."""
    return [
        ("pdiff", "app", out / "independent"),
        ("pdiff", "inspect", out / "independent" / "dataset"),
        ("pdiff", "run", "digits-subsets", "--out", out.parent / "unseen-tasks"),
    ]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=RECIPE_HELP, autocompletion=complete_recipe)],
    out: Annotated[Path, typer.Option(help="Folder of the run; a begun run of the same recipe goes on.")],
    overrides: Set = None,
    preset: Preset = None,
    profile: Profile = None,
    seed: Seed = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe: collect, train both stages, generate, evaluate, report."""
    if seeds and seed is not None:
        raise ValueError("give --seed or --seeds, not both.")
    if seeds and len(set(seeds)) > 1:
        runs, summary = {out / f"seed-{n}": n for n in seeds}, out / "report"
    else:
        runs, summary = ({out / f"seed-{seeds[0]}": seeds[0]} if seeds else {out: seed}), None
    from ..runs.recipe import load_recipe

    recipes = {folder: load_recipe(recipe, overrides or (), n, preset, profile) for folder, n in runs.items()}
    line, found = line_printer(as_json), {}
    for folder, metrics in _execute(recipes, line, as_json):
        from ..report.write import make_table, write_summary

        found[folder] = metrics
        if metrics is not None:
            if not as_json:
                console.print(make_table(metrics))
            line(f"Report: {folder / 'report' / 'report.html'}")
        line(f"Pipeline: {folder / 'pipeline'}")
    if None in found.values():
        # Of networks of many tasks.
        return print_json(dict.fromkeys(map(str, found)), as_json)
    if summary is None:
        return print_json(found[folder].to_dict(), as_json)
    from ..evaluation.summary import aggregate_seeds

    together = aggregate_seeds({seed: found[folder] for folder, seed in runs.items()})
    write_summary(together, summary)
    if not as_json:
        console.print(make_table(together))
    line(f"Report of all seeds: {summary / 'report.html'}")
    by_seed = {str(folder): metrics.to_dict() for folder, metrics in found.items()}
    print_json({"seeds": by_seed, "together": together.to_dict()}, as_json)


@app.command()
def collect(
    recipe: Annotated[str, typer.Argument(help=RECIPE_HELP, autocompletion=complete_recipe)],
    out: Annotated[Path, typer.Option(help="New folder for the parameter dataset.")],
    overrides: Set = None,
    preset: Preset = None,
    profile: Profile = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Train a base model and collect its checkpoints into a parameter dataset."""
    from ..files import check_new
    from ..runs.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), seed, preset, profile)
    loaded.task.source_folder()
    check_new(out, "the checkpoints")
    quiet()
    from ..runs.stages import collect as collect_stage

    summary = collect_stage(loaded, out)
    line_printer(as_json)(
        f"{summary['num_checkpoints']} checkpoints of {summary['num_parameters']:,} parameters, mean test accuracy "
        f"{summary['test_accuracy']:.2%} → {out}"
        + "".join(
            f"\n{summary[key]} more of {role} tasks → {out / role}" for role, key in OTHER_ROLES if key in summary
        )
    )
    print_json(summary, as_json)


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="A parameter dataset, or user/name[@revision] on the Hub.")],
    out: Annotated[Path, typer.Option(help="Receives autoencoder/ and pipeline/; a begun training goes on.")],
    overrides: Set = None,
    preset: Preset = None,
    profile: Profile = None,
    seed: Seed = None,
    task: TaskSpec = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Train autoencoder and denoiser on a parameter dataset (keys autoencoder.* and diffusion.*)."""
    from ..data.folder import num_rows
    from ..runs.folder import TRAINED, open_run
    from ..runs.recipe import fit_recipe, load_training

    folder, given_task = check_dataset(dataset), parse_given_task(task)
    loaded = load_training(folder or dataset, overrides or (), seed, preset, profile)
    if folder is not None and (known := num_rows(folder)) is not None:
        open_run(fit_recipe(loaded, known)[0], out, written=TRAINED)
    quiet()
    from ..data.dataset import ParameterDataset
    from ..runs.stages import train_stages

    opened = ParameterDataset(dataset, trusted_imports=trusted or ())
    loaded = load_training(opened.folder, overrides or (), seed, preset, profile)
    line = line_printer(as_json)
    report = train_stages(loaded, opened, out, line, given_task)
    line(f"Next: {command('pdiff', 'generate', out / 'pipeline', '--out', out / 'generated')}")
    print_json(report, as_json)


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    axis: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUE,…",
            help="num_checkpoints, noise, timesteps, layer, sampling, optimizer, autoencoder, or any recipe key.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the ablation; a begun one goes on, also with further axes.")],
    overrides: Set = None,
    seeds: Seeds = None,
    grid: Annotated[bool, typer.Option("--grid", help="All combinations instead of each axis alone.")] = False,
    preset: Preset = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Vary a recipe along axes; every point is an ordinary run. accelerate launch -m pdiff_hf ablate shares them."""
    from ..runs.ablation.axes import parse_axes
    from ..runs.ablation.plan import make_plan, open_ablation

    options = {"seeds": list(dict.fromkeys(seeds or ())), "grid": grid, "preset": preset, "profile": profile}
    plan = make_plan(recipe, parse_axes(axis), overrides or (), **options)
    axes = open_ablation(plan, out)
    if axes != plan.axes:
        plan = make_plan(recipe, axes, overrides or (), **options)
    quiet()
    from ..runs.ablation.execute import execute
    from ..runs.ablation.results import collect_results, list_problems, make_terminal_table, write_results

    line = line_printer(as_json)
    execute(plan, out, line)
    if console.quiet:
        return
    results = collect_results(plan, out)
    files = write_results(results, out)
    if not as_json:
        console.print(make_terminal_table(results))
    for problem in list_problems(results):
        line(f"Failed: {problem}")
    for file in files:
        line(f"→ {file}")
    print_json(results, as_json)
