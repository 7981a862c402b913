"""How a message names what can be changed: an argument of Python, or an option of the command that was typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# Argument of Python → option of the command at hand; `None` where no command was typed.
_options: ContextVar[Mapping[str, str] | None] = ContextVar("options", default=None)

# The option that sets keys of a recipe.
SET = "overrides"


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
