"""Ablations as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import AsJson, Preset, Profile, Seeds, Set, app, console, line_printer, print_json, quiet


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
    quiet()
    from ..ablation.axes import parse_axes
    from ..ablation.execute import execute, open_ablation
    from ..ablation.plan import make_plan
    from ..ablation.results import collect_results, list_problems, make_terminal_table, write_results

    options = {"seeds": list(dict.fromkeys(seeds or ())), "grid": grid, "preset": preset, "profile": profile}
    plan = make_plan(recipe, parse_axes(axis), overrides or (), **options)
    axes = open_ablation(plan, out)
    if axes != plan.axes:
        plan = make_plan(recipe, axes, overrides or (), **options)
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
