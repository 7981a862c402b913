"""Sharing artefacts on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .app import AsJson, Trusted, app, line_printer, print_json, quiet, warnings_as_lines

push = typer.Typer(help="Share artefacts on the Hub.", no_args_is_help=True)
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
    quiet()
    if append and private:
        raise ValueError("--append is for a dataset that is there; give it or --private, not both.")
    from ..hub.append import append_dataset
    from ..hub.push import push_dataset

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
    quiet()
    from ..hub.push import push_pipeline

    _push(lambda: push_pipeline(path, repo_id, standalone=standalone, private=private, revision=revision), as_json)


@push.command("generated")
def push_generated(
    path: Annotated[Path, typer.Argument(help="Generated networks.")],
    repo_id: RepoId,
    source: Annotated[
        str | None, typer.Option(help="Pipeline or dataset they belong to; beside PATH by default.")
    ] = None,
    index: Annotated[int | None, typer.Option(min=0, help="Network; the best selected one by default.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Push all networks.")] = False,
    private: Private = False,
    revision: Revision = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Push one network as an ordinary model, or all as a zoo."""
    quiet()
    from ..hub.generated import push_generated

    options = {"index": index, "zoo": zoo, "private": private, "revision": revision}
    source = source or str(path.resolve().parent / "pipeline")
    _push(lambda: push_generated(path, repo_id, source, trusted_imports=tuple(trusted or ()), **options), as_json)
