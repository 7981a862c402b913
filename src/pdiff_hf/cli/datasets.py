"""Parameter datasets beside their collection: import, and examination before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .adapters import import_adapter_folders
from .app import AsJson, TaskSpec, Trusted, app, command, console, line_printer, print_json, quiet, warnings_as_lines
from .checks import check_dataset, check_import, parse_given_task

if TYPE_CHECKING:
    from ..base_model import BaseModel


@app.command("import")
def import_(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Files of weights, folders, Trainer outputs, hub:user/name@revision,…"),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the parameter dataset.")],
    select: Annotated[
        list[str] | None, typer.Option(help="all (default), last_norms:K, head, or globs; repeatable")
    ] = None,
    buffers: Annotated[
        bool, typer.Option("--buffers", help="Also the running statistics of the selected layers.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="timm:NAME, torchvision:NAME, transformers:CLASS, diffusers:CLASS or import:./file.py:factory, whose "
            "code is run; by default as a model's config.json says"
        ),
    ] = None,
    kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="Arguments of --base.")] = None,
    base_model_json: Annotated[
        Path | None, typer.Option(help="A base model as layout.json has it, in place of --base.")
    ] = None,
    metrics_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help=r"Named groups of names, e.g. '(?P<epoch>\d+)-acc(?P<val_accuracy>[\d.]+)'"
        ),
    ] = None,
    rest: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|first",
            help="A file of the whole network, for checkpoints of a part; or keep the first's rest where it differs.",
        ),
    ] = None,
    revisions: Annotated[
        str | None, typer.Option(metavar="all", help="All commits of hub: repositories that changed weights.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="One run that all rows belong to.")] = None,
    task: TaskSpec = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="Each file is a training run of its own.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="ENTRY", help="The entry of the files that is the network, where several fit."),
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or JSON: what each file, folder or run was trained for, see docs/conditions.md."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of conditions that are sentences: a folder, or a name on the Hub."),
    ] = None,
    peft: Annotated[
        bool,
        typer.Option(
            "--peft", help="The sources are PEFT adapters of --base: a model's folder, timm:NAME or user/name."
        ),
    ] = False,
    keep_scaling: Annotated[
        bool, typer.Option("--keep-scaling", help="With --peft: scalings and ranks stay, and have to be equal.")
    ] = False,
    base_name: Annotated[
        str | None, typer.Option(metavar="any", help="With --peft: adapters may name different bases.")
    ] = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Make a parameter dataset from checkpoints or PEFT adapters that exist already."""
    if encoder is not None and conditions is None:
        raise ValueError("--encoder is for --conditions; give a file of them, too.")
    if peft:
        others = {"--select": select, "--buffers": buffers, "--rest": rest, "--revisions": revisions, "--run": run}
        others |= {"--independent": independent, "--key": key, "--base-model-json": base_model_json}
        given = {"keep_scaling": keep_scaling, "base_name": base_name, "metrics_pattern": metrics_pattern}
        given |= {"task": task, "conditions": conditions, "encoder": encoder, "as_json": as_json}
        summary = import_adapter_folders(sources, out, base, _kwargs(kwargs, base), others, **given)
        return _say_next(summary, out, line_printer(as_json), "adapters")
    if keep_scaling or base_name is not None:
        raise ValueError("--keep-scaling and --base-name are for adapters; give --peft, too.")
    if revisions not in (None, "all"):
        raise ValueError(f"--revisions: expected 'all', found {revisions!r}.")
    arguments = _builder_arguments(base, kwargs, base_model_json)
    check_import(sources, revisions == "all", metrics_pattern, out, conditions)
    given_task = parse_given_task(task)
    quiet()
    from ..data.importing.importer import import_checkpoints
    from ..runs.task_spec import task_describer
    from ..text_encoder import TextEncoder
    from ..trust import remember

    base_model = _base_model(base, arguments, base_model_json, trusted or ())
    line = line_printer(as_json)
    with warnings_as_lines(line):
        summary = import_checkpoints(
            sources,
            out,
            base_model=base_model,
            # One selector is not a list of globs.
            select=None if not select else select[0] if len(select) == 1 else select,
            buffers=buffers,
            keep_first_rest=rest == "first",
            rest=None if rest == "first" else rest,
            key=key,
            all_revisions=revisions == "all",
            metrics_pattern=metrics_pattern,
            run=run,
            describe_task=None if given_task is None else task_describer(given_task, line),
            independent=independent,
            conditions=conditions,
            embed=None if encoder is None else TextEncoder(encoder),
        )
    if base_model is not None and base_model.library == "import":
        remember(base_model.name, base_model.kwargs)
    _say_next(summary, out, line, "checkpoints")
    print_json({"folder": str(out), **summary}, as_json)


def _say_next(summary: dict[str, Any], out: Path, line: Callable[[str], None], noun: str) -> None:
    """What was imported, and what to do with it."""
    from ..models.auto import AUTOENCODER, DENOISER
    from ..models.few_rows import MIN_ROWS, fit_to_rows

    for note in summary["notes"]:
        line(note)
    line(f"{summary['num_checkpoints']} {noun} of {summary['num_parameters']:,} parameters → {out}")
    if summary["num_checkpoints"] < MIN_ROWS:
        line(f"To be trained on, they are too few: {MIN_ROWS} are the fewest.")
    else:
        _, _, lines = fit_to_rows(AUTOENCODER.validate({}), DENOISER.validate({}), summary["num_checkpoints"])
        run_dir = out.parent if out.name == "dataset" else out.with_name(f"{out.name}-run")
        lines.append(f"Next: {command('pdiff', 'train', out, '--out', run_dir)}")
        for text in [*lines, f"What stands in the way of it: {command('pdiff', 'inspect', out)}"]:
            line(text)


def _kwargs(text: str | None, base: str | None) -> dict[str, Any]:
    """The JSON object of `--kwargs`."""
    from ..files import parse_json

    if text is not None and base is None:
        raise ValueError("--kwargs is for --base; give it too.")
    try:
        arguments = parse_json(text or "{}")
    except ValueError as error:
        raise ValueError(f"--kwargs: expected a JSON object, found {text!r}: {error}.") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"--kwargs: expected a JSON object, found {text!r}.")
    return arguments


def _builder_arguments(base: str | None, kwargs: str | None, base_model_json: Path | None) -> dict[str, Any]:
    """What `--kwargs` says; what is wrong with the options that name a base model is found."""
    from ..base_model import split_reference

    if base is not None and base_model_json is not None:
        raise ValueError("give --base or --base-model-json, not both.")
    arguments = _kwargs(kwargs, base)
    if base is not None:
        split_reference(base)
    if base_model_json is not None and not base_model_json.is_file():
        raise ValueError(f"expected a JSON file at {base_model_json}, found none.")
    return arguments


def _base_model(
    base: str | None, arguments: dict[str, Any], base_model_json: Path | None, trusted: Sequence[str]
) -> BaseModel | None:
    """The reference that the options of `import` name."""
    from ..data.importing.references import parse_base_model, read_base_model

    if base is None and base_model_json is None:
        return None
    found = read_base_model(base_model_json) if base is None else parse_base_model(base, arguments)
    # Whoever types the name of code runs it.
    return replace(found, trusted_imports=(*trusted, *([found.name] if base is not None else [])))


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="A parameter dataset, or user/name[@revision] on the Hub.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the rows, pairs and examples that are drawn.")] = 0,
    task: TaskSpec = None,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Examine a parameter dataset before training: what stands in the way, and what training will cost."""
    check_dataset(dataset)
    given_task = parse_given_task(task)
    quiet()
    from ..data.dataset import ParameterDataset
    from ..evaluation.inspection.inspect_dataset import inspect_dataset
    from ..evaluation.inspection.tables import make_tables
    from ..tasks.evaluators import make_gate_evaluator, open_task

    opened, evaluator = ParameterDataset(dataset, trusted_imports=trusted or ()), None
    try:
        evaluator = make_gate_evaluator(opened, open_task(opened, given_task))
    except ValueError as error:
        if given_task is not None:
            raise
        # All that needs no examples can still be said.
        line_printer(as_json)(f"The networks are not evaluated: {error}")
    if evaluator is not None and evaluator.rows is not None:
        line_printer(as_json)("The networks are not evaluated: averages of those of several tasks have no labels.")
        evaluator = None
    report = inspect_dataset(opened, evaluator, seed=seed)
    if as_json:
        return print_json(report, as_json)
    console.print(make_tables(report), highlight=False)
