"""The page of a pipeline in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import TaskSpec, Trusted, app, line_printer, quiet
from .checks import check_dataset, check_pipeline, parse_given_task


@app.command("app")
def serve_page(
    pipeline: Annotated[
        str, typer.Argument(help="Folder of a run or a pipeline, or user/name[@revision] on the Hub.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Parameter dataset of the originals; beside PIPELINE by default.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; this machine alone by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on by default.")
    ] = None,
    in_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    task: TaskSpec = None,
    trusted: Trusted = None,
) -> None:
    """Serve a page: generate networks, look at them among the originals, let them vote on what is drawn."""
    inside = Path(pipeline, "pipeline")
    check_pipeline(str(inside) if inside.is_dir() else pipeline)
    if dataset is not None:
        check_dataset(dataset)
    given_task = parse_given_task(task)
    from ..app.serve import require_gradio, serve

    require_gradio()
    quiet()
    line = line_printer(as_json=False)
    serve(
        pipeline,
        dataset,
        given_task,
        trusted or (),
        host=host,
        port=port,
        in_browser=in_browser,
        say=lambda address: line(f"Open {address} (Ctrl+C ends it)"),
    )
