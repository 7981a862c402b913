"""What stands for an object of foreign code: its name and what was stored of it, without its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Of a whole pickled module: how deep modules lie in each other, and the characters of all names together.
MODULE_DEPTH = 100
MODULE_CHARACTERS = 50_000_000


@dataclass(eq=False, repr=False, slots=True)
class Placeholder:
    """A class, a function or an object that a file names; nothing of it is imported or called.

    Args:
        module (`str`): Module of the class or function, as the file names it.
        name (`str`): Its qualified name.
        args (`tuple`, *optional*): What it was to be called with; `None` for the class or function itself.
        state (`Any`, *optional*): What its `__setstate__` was to get, mostly the dictionary of its attributes.
        entries (`dict`, *optional*): Items, of a subclass of `dict`.
        elements (`list`, *optional*): Elements, of a subclass of `list` or `set`.
    """

    module: str
    name: str
    args: tuple | None = None
    state: Any = None
    entries: dict | None = None
    elements: list | None = None

    def __repr__(self) -> str:
        return f"<placeholder of {self.full_name}>"

    @property
    def full_name(self) -> str:
        """Module and name, printable and at most 80 characters long."""
        text = f"{self.module[:80]}.{self.name[:80]}"
        text = "".join(character if character.isprintable() else "?" for character in text)
        return text if len(text) <= 80 else f"{text[:79]}…"


def state_of_module(value: Any) -> dict[str, Any] | None:
    """The state dict of a whole pickled `torch.nn.Module`; `None` for anything else.

    Names and their order are those of `Module.state_dict`: parameters, persistent buffers, then the modules within.
    A tensor that several names share has all of them. What stands for no tensor stays a [`Placeholder`].

    Raises:
        ValueError: modules hold themselves, or give more names than any network has.
    """
    if _attributes(value) is None:
        return None
    return dict(_tensors(value, "", [], [0]))


def _attributes(value: Any) -> dict | None:
    if not isinstance(value, Placeholder):
        return None
    # With slots, the state is a pair.
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    kinds = ("_parameters", "_buffers", "_modules")
    return state if isinstance(state, dict) and all(isinstance(state.get(kind), dict) for kind in kinds) else None


def _tensors(module: Any, prefix: str, above: list[Any], spent: list[int]) -> Iterator[tuple[str, Any]]:
    attributes = _attributes(module)
    if attributes is None:
        return
    if module in above or len(above) > MODULE_DEPTH:
        raise ValueError(f"the modules of {module.full_name} hold each other, or lie too deep in each other.")
    hidden = attributes.get("_non_persistent_buffers_set")
    hidden = {name for name in hidden if isinstance(name, str)} if isinstance(hidden, list) else set()
    members = [(name, value) for kind in ("_parameters", "_buffers") for name, value in attributes[kind].items()]
    spent[0] += 50 + len(hidden) + sum(len(prefix) + len(str(name)) for name, _ in members)
    if spent[0] > MODULE_CHARACTERS:
        raise ValueError(f"the modules of {module.full_name} have more names than a network has.")
    for name, value in members:
        if value is not None and not (name in hidden and name in attributes["_buffers"]):
            yield f"{prefix}{name}", value
    for name, child in attributes["_modules"].items():
        yield from _tensors(child, f"{prefix}{name}.", [*above, module], spent)
