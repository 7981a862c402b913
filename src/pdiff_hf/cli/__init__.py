"""The `pdiff` command: parse, call, print. Heavy imports are inside the commands, so that help is quick."""

from __future__ import annotations

import os
import sys

from rich.markup import escape

from ..os_errors import as_os_error, describe, exit_code
from ..terminal import cleaning_up_on_sigterm, lasting_streams
from .app import app, console, errors

# The commands register themselves, in the order of the help.
# isort: off
from . import runs, datasets, networks, page, artefacts, doctor  # noqa: F401
# isort: on

# Options that take several numbers.
LISTS = ("--seeds",)
# With less, rich would leave out the text.
MIN_COLUMNS = 20


@lasting_streams()
@cleaning_up_on_sigterm()
def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, a full disk or a fault of the machine in 1."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        # Where there is no terminal, rich takes 80 columns, in which the table of groups has many lines for each row.
        console.width = 120
    elif console.width < MIN_COLUMNS:
        console.width = MIN_COLUMNS
        os.environ["COLUMNS"] = str(MIN_COLUMNS)
    # Before torch is imported. Threads that spin while they wait make small networks ten times slower on a busy CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        # Progress bars in a log file: a line every ten seconds, not ten a second. Read when tqdm is imported.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    arguments: list[str] = []
    listed = None
    for argument in sys.argv[1:]:
        # `--seeds 0 1 2`, as argparse would have it, is `--seeds 0 --seeds 1 --seeds 2` to typer.
        if listed and argument.isdecimal() and arguments[-1] != listed:
            arguments.append(listed)
        listed = argument if argument in LISTS else listed if argument.isdecimal() else None
        arguments.append(argument)
    try:
        app(arguments)
    except ValueError as error:
        text = str(error)
        if isinstance(error, UnicodeEncodeError):
            # What is printed always has an encoding; names of files may have none.
            text = f"the encoding of this system, {error.encoding}, cannot name {error.object!r}; set PYTHONUTF8=1."
        message = escape(" ".join(text.split()))
        errors.print(f"[bold red]Error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(exit_code(error.__cause__))
    except Exception as error:
        # Also those that a library has made something else of.
        if (found := as_os_error(error)) is None:
            raise
        errors.print(f"[bold red]Error:[/] {escape(describe(found))}", highlight=False, soft_wrap=True)
        sys.exit(exit_code(found))
