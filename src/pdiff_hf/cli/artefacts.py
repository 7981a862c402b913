"""What is in a folder, and what is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .app import AsJson, app, console, print_json


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
