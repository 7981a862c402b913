"""How a message names what can be changed: an argument of Python, or an option of the command that was typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# Argument of Python → option of the command at hand; `None` where no command was typed.
_options: ContextVar[Mapping[str, str] | None] = ContextVar("options", default=None)

# The option that sets keys of a recipe, and the sections of which the training scripts have the keys as flags.
SET, SCRIPTS = "overrides", ("autoencoder", "diffusion")


@contextmanager
def typed_options(options: Mapping[str, str]) -> Iterator[None]:
    """Name arguments by these options, for whoever typed a command that has them."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def argument(name: str, value: str = "", typed: str = "", key: str | None = None) -> str:
    """An argument, with its value if there is one, as whoever reads the message can give it.

    Args:
        name (`str`): Of the argument in Python.
        value (`str`, *optional*): As it is written in Python, and in YAML.
        typed (`str`, *optional*): As it is typed after the option.
        key (`str`, *optional*): Of a recipe, where the command has no such option but `--set`.
    """
    options = _options.get() or {}
    if name in options:
        return f"{options[name]} {typed}".rstrip()
    if key is not None and SET in options:
        # Quoted, because a shell would take away the quotes of a value.
        return f'{options[SET]} "{key}={value}"' if value else f"{options[SET]} {key}=…"
    return f"{name}={value}" if value else name


def setting(key: str, value: str = "") -> str:
    """A key of a recipe, `section.name`, with its value as in YAML, as whoever reads the message can give it.

    That is an option of a training script, which has one for every key of its section, or `--set`. Commands without a
    recipe read the key from a file that the message names, and Python has it as an argument: there it is its own name.
    """
    section, _, name = key.rpartition(".")
    options = _options.get() or {}
    if SET not in options and section not in SCRIPTS:
        return f"{name}={value}" if value else name
    # A flag is enough to say yes.
    return argument(name if SET not in options else key, value, "" if value == "true" else value, key)
