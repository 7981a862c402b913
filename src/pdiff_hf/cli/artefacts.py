"""What is in a folder, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .app import AsJson, Trusted, app, console, line_printer, print_json, quiet


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A parameter dataset.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the rows, pairs and images that are drawn.")] = 0,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Examine a parameter dataset before training: what stands in the way, and what training will cost."""
    quiet()
    from ..data.dataset import read_layout
    from ..data.inspection import inspect_dataset, make_tables
    from ..tasks.stored import load_stored_task, make_val_evaluator

    read_layout(dataset)
    evaluator = None
    try:
        evaluator = make_val_evaluator(dataset, load_stored_task(dataset), trusted_imports=trusted or ())
    except ValueError as error:
        # All that needs no images can still be said.
        line_printer(as_json)(f"The networks are not evaluated: {error}")
    report = inspect_dataset(dataset, evaluator, seed=seed)
    if not as_json:
        console.print(make_tables(report), highlight=False)
    print_json(report, as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A run, dataset, autoencoder, pipeline, generated or report folder.")],
    as_json: AsJson = False,
) -> None:
    """Say what a folder is and what is in it."""
    from ..info import describe

    described = describe(path)
    if not as_json:
        for key, value in described.items():
            console.print(f"[bold]{key}[/]: {escape(str(value))}", highlight=False, soft_wrap=True)
    print_json(described, as_json)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from importlib import resources

    for file in sorted((resources.files("pdiff_hf") / "recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            console.print(f"[bold]{file.name.removesuffix('.yaml')}[/]: {first}", highlight=False, soft_wrap=True)
