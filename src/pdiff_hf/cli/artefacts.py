"""Artefacts: what a folder holds, what is shipped, and sharing on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from ..files import check_artefact
from .app import (
    AsJson,
    Preset,
    Profile,
    Set,
    Trusted,
    app,
    console,
    line_printer,
    name_options,
    print_json,
    quiet,
    warnings_as_lines,
)
from .checks import check_dataset, check_generated

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
    from ..runs.folder import describe

    described = describe(path)
    if as_json:
        return print_json(described, as_json)
    for key, value in described.items():
        console.print(f"[bold]{key}[/]: {escape(str(value))}", highlight=False, soft_wrap=True)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe as it is composed.")] = None,
    overrides: Set = None,
    preset: Preset = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped recipes and the parts that others are composed of, or show one."""
    from ..runs.composition import list_parts

    if name is None:
        listed = list_parts()
        return print_json(listed, as_json) if as_json else _print_parts(listed)
    from ..runs.recipe import compose_recipe, load_recipe

    load_recipe(name, overrides or (), preset=preset, profile=profile)
    composed = compose_recipe(name, overrides or (), preset, profile)
    if as_json:
        return print_json(composed, as_json)
    print(yaml.safe_dump(composed, sort_keys=False, default_flow_style=None, width=120), end="")


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


push = typer.Typer(help="Share artefacts on the Hub.", no_args_is_help=True)
push.callback()(name_options)
app.add_typer(push, name="push")

RepoId = Annotated[str, typer.Argument(help="user/name on the Hub; made when it does not exist.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
Revision = Annotated[str | None, typer.Option("--revision", help="A branch; made when it does not exist.")]


def _push(function: Callable[[], str], as_json: bool) -> None:
    line = line_printer(as_json)
    with warnings_as_lines(line):
        url = function()
    line(f"Pushed → {url}")
    print_json({"url": url}, as_json)


@push.command("dataset")
def push_dataset(
    path: Annotated[Path, typer.Argument(help="A parameter dataset.")],
    repo_id: RepoId,
    config: Annotated[str | None, typer.Option(help="Name among several datasets in one repository.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add its runs to those that are there.")] = False,
    private: Private = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Push a parameter dataset."""
    if append and private:
        raise ValueError("--append is for a dataset that is there; give it or --private, not both.")
    check_dataset(path)
    quiet()
    from ..data.push import append_dataset, push_dataset

    if append:
        return _push(lambda: append_dataset(path, repo_id, config=config, revision=revision), as_json)
    _push(lambda: push_dataset(path, repo_id, config=config, private=private, revision=revision), as_json)


@push.command("pipeline")
def push_pipeline(
    path: Annotated[Path, typer.Argument(help="Folder of a pipeline.")],
    repo_id: RepoId,
    standalone: Annotated[bool, typer.Option("--standalone", help="Also a branch that needs no pdiff_hf.")] = False,
    private: Private = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Push a pipeline."""
    check_artefact(path, "model_index.json", "a pipeline")
    quiet()
    from ..pipelines.push import push_pipeline

    _push(lambda: push_pipeline(path, repo_id, standalone=standalone, private=private, revision=revision), as_json)


@push.command("generated")
def push_generated(
    path: Annotated[Path, typer.Argument(help="Generated networks.")],
    repo_id: RepoId,
    source: Annotated[
        str | None, typer.Option(help="Pipeline or dataset they belong to; the pipeline they came from by default.")
    ] = None,
    index: Annotated[int | None, typer.Option(min=0, help="Network; the best selected one by default.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Push all networks.")] = False,
    private: Private = False,
    revision: Revision = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Push one network as an ordinary model, or all as a zoo."""
    if zoo and index is not None:
        raise ValueError("a zoo has all networks; give --zoo or --index, not both.")
    check_generated(path)
    quiet()
    from ..pipelines.push_generated import push_generated
    from ..runs.folder import read_metrics

    options = {"index": index, "zoo": zoo, "private": private, "revision": revision, "metrics": read_metrics(path)}
    _push(lambda: push_generated(path, repo_id, source, trusted_imports=tuple(trusted or ()), **options), as_json)


@push.command("app")
def push_app(
    repo_id: RepoId,
    pipeline: Annotated[
        str | None, typer.Option(help="user/name[@revision] of the pipeline; the Space's own name by default.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="user/name of the originals, to show them, too.")] = None,
    private: Private = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Push the page of a pipeline as a Space."""
    quiet()
    from ..app.push import push_space

    _push(lambda: push_space(repo_id, pipeline, dataset, private=private, revision=revision), as_json)
