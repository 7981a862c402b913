"""Application, options and output that the commands share."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..disk_cache import texts_kept
from ..wording import typed_options

app = typer.Typer(
    name="pdiff",
    help="Neural network diffusion: checkpoints in, generated networks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
# Of several processes, the first one speaks.
console.quiet = int(os.environ.get("RANK", "0")) > 0
errors = Console(stderr=True)

# Arguments of Python whose option has another name.
OTHER_NAMES = {
    "base_model": "base",
    "embed": "encoder",
    "folder": "out",
    "keep_first_rest": "rest",
    "output_dir": "out",
    "reestimate_batch_norm": "reestimate_bn",
    "trusted_imports": "trusted",
}


def _check_once(overrides: list[str] | None) -> list[str] | None:
    """Refuse to lose a value in silence: a key that a later one sets again, alone or with its whole section."""
    keys = [text.partition("=")[0].strip() for text in overrides or ()]
    for index, key in enumerate(keys):
        for later, text in zip(keys[index + 1 :], overrides[index + 1 :], strict=True):
            if f"{key}.".startswith(f"{later}."):
                raise ValueError(f"--set {overrides[index]}: {key} is set again by --set {text}; keep one of them.")
    return overrides


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe.", callback=_check_once),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every stage.")]
Trusted = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="MODULE[:FACTORY]", help="May be imported to build the dataset's base model."),
]
TaskSpec = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="SPEC",
        help="What networks are judged by: a data set (cifar10, a YAML file, JSON), or a function, FILE.py:NAME.",
    ),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seeds", min=0, metavar="N N …", help="One run for each seed, in OUT/seed-N.")
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="paper|fast", help="The paper's hyper-parameters, or our training stages."),
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="cpu-smoke", help="Little of everything: a minute, numbers without meaning."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def name_options(context: typer.Context) -> None:
    """Let messages name the options of the command that was typed, and let it find what earlier ones have kept."""
    command = context.command.commands[context.invoked_subcommand]
    options = {option.name: option.opts[0] for option in command.params if option.opts[0].startswith("--")}
    options |= {name: options[other] for name, other in OTHER_NAMES.items() if other in options}
    context.with_resource(typed_options(options))
    context.with_resource(texts_kept())


app.callback()(name_options)


def quiet() -> None:
    """Keep the messages of upstream libraries that are not about the user's input out of the terminal."""
    from datasets.utils.logging import disable_progress_bar
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    warnings.formatwarning = lambda message, *_, **__: f"Warning: {' '.join(str(message).split())}\n"
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    disable_progress_bar()
    hub_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def command(*words: str | Path) -> str:
    """A command as it is typed."""
    return shlex.join(map(str, words))


def line_printer(as_json: bool) -> Callable[[str], None]:
    """How a command says something to people; with --json, standard output is for the machine alone."""
    target = errors if as_json else console
    return lambda text: target.print(text, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any, as_json: bool) -> None:
    """Print what a machine reads, if it was asked for."""
    if as_json and not console.quiet:
        print(json.dumps(value, indent=2))


@contextmanager
def warnings_as_lines(line: Callable[[str], None]) -> Iterator[None]:
    """Say our own warnings in a line each, when the work is done."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if warning.category is UserWarning:
            line(f"Warning: {warning.message}")
