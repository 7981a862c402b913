"""A closer look at finished runs: the way of generation, memorisation, and the page of all results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import AsJson, Seed, Set, Trusted, app, console, line_printer, print_json, quiet


@app.command()
def trajectory(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run: dataset/ and pipeline/ inside.")],
    num_starts: Annotated[int, typer.Option(min=1, help="Networks to follow.")] = 5,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="The recipe's by default.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="dpmsolver++, ddim or ddpm; the recipe's by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; the recipe's by default.")] = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Follow networks from noise to the end: their accuracy, and where they lie among the originals."""
    quiet()
    from ..run_folder import Run
    from ..run_trajectory import generate_config, trajectory_run

    run = Run(run_dir)
    given = {"num_inference_steps": num_inference_steps, "scheduler": scheduler, "seed": seed}
    config = generate_config(run, {key: value for key, value in given.items() if value is not None})
    found, files = trajectory_run(run, config, num_starts, trusted or ())
    line = line_printer(as_json)
    ends = {key: _mean(found["noisy"][key][-1]) for key in ("accuracy", "distance", "distance_to_mean")}
    line(
        f"{num_starts} networks, {config.num_inference_steps} steps: test accuracy from "
        f"{_mean(found['noisy']['accuracy'][0]):.2%} to {ends['accuracy']:.2%} (originals "
        f"{found['originals']['accuracy']['mean']:.2%}); they end {ends['distance']:.3g} yardsticks from the nearest "
        f"original and {ends['distance_to_mean']:.2f} times as far from the originals' mean as originals do."
    )
    for file in files:
        line(f"→ {file}")
    line("The next pdiff evaluate puts both figures into report.html.")
    print_json(found, as_json)


@app.command()
def audit(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of a parameter dataset.")],
    out: Annotated[Path, typer.Option(help="Folder of the audit; a begun one goes on.")],
    num_checkpoints: Annotated[
        list[int], typer.Option("--num-checkpoints", min=1, metavar="K K …", help="Train on the first K checkpoints.")
    ] = (10, 50, 200, 300),  # type: ignore[assignment]
    overrides: Set = None,
    seed: Seed = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Does the generator memorise? Its similarity to its checkpoints, against their number."""
    quiet()
    from ..evaluation.audit import make_audit_table
    from ..run_audit import audit as audit_run
    from ..run_audit import audit_recipe

    line = line_printer(as_json)
    found = audit_run(audit_recipe(source, overrides or (), seed), num_checkpoints, out, trusted or (), line)
    if not as_json:
        console.print(make_audit_table(found))
    line(f"→ {out / 'audit.md'}, audit.json, audit.png; a report of every K in {out / 'K-…' / 'report'}")
    print_json(found, as_json)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
