"""The `pdiff` command: parse, call, print. Heavy imports are inside the commands, so that help is quick."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="pdiff",
    help="Neural network diffusion: checkpoints in, generated networks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Where there is no terminal, rich takes 80 columns, in which the table of groups has many lines for each row.
console = Console(width=None if sys.stdout.isatty() else 120)
# Of several processes, the first one speaks.
console.quiet = int(os.environ.get("RANK", "0")) > 0
errors = Console(stderr=True)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every stage.")]
Trusted = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="MODULE[:FACTORY]", help="May be imported to build the dataset's base model."),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seeds", min=0, metavar="N N …", help="One run for each seed, in OUT/seed-N."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2."""
    # Before torch is imported. Threads that spin while they wait make small networks ten times slower on a busy CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        # Progress bars in a log file: a line every ten seconds, not ten a second. Read when tqdm is imported.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    arguments: list[str] = []
    in_seeds = False
    for argument in sys.argv[1:]:
        # `--seeds 0 1 2`, as argparse would have it, is `--seeds 0 --seeds 1 --seeds 2` to typer.
        if in_seeds and argument.isdecimal() and arguments[-1] != "--seeds":
            arguments.append("--seeds")
        in_seeds = argument == "--seeds" or (in_seeds and argument.isdecimal())
        arguments.append(argument)
    try:
        app(arguments)
    except ValueError as error:
        message = escape(" ".join(str(error).split()))
        errors.print(f"[bold red]Error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _quiet() -> None:
    """Keep the messages of upstream libraries that are not about the user's input out of the terminal."""
    from datasets.utils.logging import disable_progress_bar
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    disable_progress_bar()
    hub_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _line(as_json: bool):
    # With --json, standard output is for the machine alone.
    target = errors if as_json else console
    return lambda text: target.print(text, highlight=False, markup=False, soft_wrap=True)


def _print(value: Any, as_json: bool) -> None:
    if as_json and not console.quiet:
        print(json.dumps(value, indent=2))


def _run(recipe: str, runs: dict[Path, int | None], overrides: list[str] | None, as_json: bool) -> None:
    from .recipe import load_recipe

    loaded = {folder: load_recipe(recipe, overrides or (), seed) for folder, seed in runs.items()}
    _quiet()
    from .evaluation import make_table
    from .run import run_recipe
    from .run_folder import open_run

    # Another run in the last folder is noticed before the first has taken its time.
    for folder, configured in loaded.items():
        open_run(configured, folder)
    line, metrics = _line(as_json), {}
    for folder, configured in loaded.items():
        metrics[str(folder)] = run_recipe(configured, folder, line)
        if not as_json:
            console.print(make_table(metrics[str(folder)]))
        line(f"Report: {folder / 'report' / 'report.md'}\nPipeline: {folder / 'pipeline'}")
    _print(metrics if len(runs) > 1 else metrics[str(folder)], as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """The whole way on embedded data: a perceptron on scikit-learn's digits, about a minute."""
    _run("digits-mlp", {out: seed}, None, as_json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a begun run of the same recipe goes on.")],
    overrides: Set = None,
    seed: Seed = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe: collect, train both stages, generate, evaluate, report."""
    if seeds and seed is not None:
        raise ValueError("give --seed or --seeds, not both.")
    _run(recipe, {out / f"seed-{n}": n for n in seeds} if seeds else {out: seed}, overrides, as_json)


@app.command()
def collect(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    out: Annotated[Path, typer.Option(help="New folder for the parameter dataset.")],
    overrides: Set = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Train a base model and collect its checkpoints into a parameter dataset."""
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), seed)
    _quiet()
    from .run import collect as collect_stage

    summary = collect_stage(loaded, out)
    _line(as_json)(
        f"{summary['num_checkpoints']} checkpoints of {summary['num_parameters']:,} parameters, mean test accuracy "
        f"{summary['test_accuracy']:.2%} → {out}"
    )
    _print(summary, as_json)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A parameter dataset.")],
    out: Annotated[Path, typer.Option(help="Receives autoencoder/ and pipeline/; a begun training goes on.")],
    overrides: Set = None,
    seed: Seed = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Train autoencoder and denoiser on a parameter dataset (keys autoencoder.* and diffusion.*)."""
    from .recipe import load_training

    loaded = load_training(dataset, overrides or (), seed)
    _quiet()
    from .run import train_stages

    line = _line(as_json)
    report = train_stages(loaded, out, trusted or (), line)
    line(f"The autoencoder explains {report['explained_variance']:.2%} of the variance of held-out checkpoints.")
    _print(report, as_json)


@app.command()
def generate(
    pipeline: Annotated[Path, typer.Argument(help="Folder of a pipeline.")],
    out: Annotated[Path, typer.Option(help="New folder for the networks.")],
    num_samples: Annotated[int, typer.Option(min=1)] = 100,
    num_inference_steps: Annotated[int, typer.Option(min=1)] = 20,
    scheduler: Annotated[str, typer.Option(help="dpmsolver++, ddim or ddpm")] = "dpmsolver++",
    truncation: Annotated[float, typer.Option(min=0, max=1, help="1 as sampled, 0 the mean")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    select: Annotated[str | None, typer.Option(metavar="val", help="Keep the best on these images only.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Number of networks to keep; 1 by default.")] = None,
    soup: Annotated[bool, typer.Option("--soup", help="Also write the average of those that are kept.")] = False,
    reestimate_bn: Annotated[
        bool, typer.Option("--reestimate-bn", help="Re-estimate BatchNorm statistics on training images.")
    ] = False,
    dataset: Annotated[
        Path | None, typer.Option(help="Parameter dataset whose images are selected on; beside PIPELINE by default.")
    ] = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Generate networks as safetensors files; with --select, the best of them."""
    given = {"--top": top, "--soup": soup, "--reestimate-bn": reestimate_bn, "--dataset": dataset, "--trust": trusted}
    if select is None and (needless := [name for name, value in given.items() if value]):
        raise ValueError(f"{needless[0]} is for selected networks; give --select val too.")
    _quiet()
    from .files import read_json
    from .generation import SelectionConfig, generate_networks, load_pipeline

    loaded, selection = load_pipeline(pipeline), None
    if select is not None:
        dataset = dataset or pipeline.resolve().parent / "dataset"
        if not dataset.is_dir():
            raise ValueError(f"expected a parameter dataset at {dataset}, found none; name it with --dataset.")
        selection = SelectionConfig(dataset, select, top or 1, soup, reestimate_bn, trusted or ())
    generate_networks(loaded, out, num_samples, num_inference_steps, scheduler, truncation, seed, selection)
    line = _line(as_json)
    if selection is None:
        line(f"{num_samples} networks → {out}")
        _print({"folder": str(out), "num_samples": num_samples}, as_json)
        return
    found = read_json(out / "index.json")["selection"]
    best = found["val_accuracy"][0]
    line(
        f"{found['num_drawn']} networks drawn in {found['seconds']['draw']:.1f} s, {len(found['draws'])} selected on "
        f"{found['num_val']} val images in {found['seconds']['select']:.1f} s → {out}"
    )
    if found["num_dropped"]:
        line(f"Dropped, because not finite: {found['num_dropped']}.")
    line(f"Val accuracy: {', '.join(f'{accuracy:.2%}' for accuracy in found['val_accuracy'])}.")
    if reestimate_bn:
        before = found["val_accuracy_before_batch_norm"]
        line(f"Before BatchNorm statistics were re-estimated: {', '.join(f'{accuracy:.2%}' for accuracy in before)}.")
    if soup:
        difference = found["soup_val_accuracy"] - best
        than = "better than" if difference > 0 else "worse than" if difference < 0 else "equal to"
        line(f"Their soup: {found['soup_val_accuracy']:.2%}, {than} the best single one.")
    line("Val accuracy of selected networks is optimistic; pdiff evaluate reports on test images.")
    _print({"folder": str(out), "num_samples": num_samples, "selection": found}, as_json)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run: dataset/, pipeline/ and generated/ inside.")],
    dataset: Annotated[Path | None, typer.Option(help="Parameter dataset, when it is elsewhere.")] = None,
    pipeline: Annotated[Path | None, typer.Option(help="Pipeline, when it is elsewhere.")] = None,
    generated: Annotated[Path | None, typer.Option(help="Generated networks, when they are elsewhere.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; RUN_DIR/report by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the baselines' draws; the recipe's by default.")] = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate generated networks against originals and baselines, and write the report anew."""
    _quiet()
    from .evaluation import make_table
    from .run_evaluation import evaluate_config, evaluate_run
    from .run_folder import Run

    run = Run(run_dir)
    metrics = evaluate_run(
        run,
        evaluate_config(run, seed),
        trusted_imports=trusted or (),
        dataset_dir=dataset,
        pipeline_dir=pipeline,
        generated_dir=generated,
        output_dir=out,
    )
    if not as_json:
        console.print(make_table(metrics))
        _line(as_json)(f"Report: {(out or run_dir / 'report') / 'report.md'}")
    _print(metrics, as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A run, dataset, autoencoder, pipeline, generated or report folder.")],
    as_json: AsJson = False,
) -> None:
    """Say what a folder is and what is in it."""
    from .info import describe

    described = describe(path)
    if not as_json:
        for key, value in described.items():
            console.print(f"[bold]{key}[/]: {escape(str(value))}", highlight=False, soft_wrap=True)
    _print(described, as_json)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from importlib import resources

    for file in sorted((resources.files("pdiff_hf") / "recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            console.print(f"[bold]{file.name.removesuffix('.yaml')}[/]: {first}", highlight=False, soft_wrap=True)
