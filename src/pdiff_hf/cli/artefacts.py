"""What is in a folder, and what is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from .app import AsJson, Preset, Profile, Set, app, console, print_json

HEADINGS = {
    "recipes": "Recipes",
    "networks": "Networks, and their parameters on CIFAR-10",
    "selections": "Selections",
    "data": "Data sets; every fitting <network>-<selection>-<data> is a recipe too",
    "presets": "Presets (--preset)",
    "profiles": "Profiles (--profile)",
}


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
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe as it is composed.")] = None,
    overrides: Set = None,
    preset: Preset = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped recipes and the parts that others are composed of, or show one."""
    from ..composition import list_parts, read_recipe

    if name is None:
        listed = list_parts()
        if not as_json:
            _print_parts(listed)
        print_json(listed, as_json)
        return
    from ..recipe import load_recipe

    load_recipe(name, overrides or (), preset=preset, profile=profile)
    composed = read_recipe(name, overrides or (), preset, profile)
    if not as_json:
        print(yaml.safe_dump(composed, sort_keys=False, default_flow_style=None, width=120), end="")
    print_json(composed, as_json)


def _print_parts(listed: dict[str, list[dict[str, Any]]]) -> None:
    for kind, entries in listed.items():
        console.print(f"[bold]{HEADINGS[kind]}[/]", highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column()
        for entry in entries:
            count = f"{entry['num_parameters']:,}" if "num_parameters" in entry else ""
            table.add_row(entry["name"], count, escape(entry["description"]))
        console.print(table)
