"""Validation of sections, with the nearest valid key for an unknown one, and their flags for the training scripts."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel as PydanticModel
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..sections import OneOf
from ..wording import argument

# diffusers' name of a flag, where the recipe's key is another.
FLAGS = {"steps": "max_train_steps"}


def parse_config(model: type[PydanticModel], values: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """Validate `values` by a pydantic model; the first problem becomes a `ValueError` of one line.

    `also` are further valid keys at the top level, to be named when they are misspelt.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected sections such as 'task' and 'collect', found {values!r:.200}.")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # What is missing may be so because of another problem, such as a misspelt key or preset.
    problem = next((problem for problem in problems if problem["type"] != "missing"), problems[0])
    keys = [str(key) for key in problem["loc"]]
    names = [*valid_keys(model, values), *also]
    path = ".".join(keys)
    while path not in names and len(keys) > 1 and problem["type"] not in ("extra_forbidden", "missing"):
        keys.pop()
        path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        parent = path.rpartition(".")[0]
        siblings = [name for name in names if name.rpartition(".")[0] == parent]
        near = difflib.get_close_matches(path, siblings, 1, 0.5) or difflib.get_close_matches(path, names, 1, 0.0)
        kind = ""
        if path in valid_keys(model):
            # A key of another kind of its section.
            kind = f" of kind {_union(model.model_fields[parent]).kind_of(values.get(parent))!r}"
        raise ValueError(f"unknown {_name(path)}{kind}; the nearest valid key is {argument(near[0])!r}.")
    if problem["type"] == "missing":
        raise ValueError(f"{_name(path)} is missing; it has no default.")
    if problem["type"] == "literal_error" and keys[-1] == "kind":
        raise ValueError(f"{_name(path)}: expected one of {problem['ctx']['expected']}, found {problem['input']!r}.")
    if problem["type"] == "value_error":
        raise ValueError(f"{_name(path)}: {problem['ctx']['error']}")
    expected = problem["msg"].removeprefix("Input should be ")
    raise ValueError(f"{_name(path)}: expected {expected}, found {problem['input']!r}.")


def _name(path: str) -> str:
    """A key as it was given: by an option of its own, or in a recipe."""
    option = argument(path)
    return f"key {path!r}" if option == path else option


def check_split(split: str) -> None:
    """Raise `ValueError` for another split than the one on which networks may be chosen."""
    if split != "val":
        reason = "; what is chosen on test images cannot be reported on them" if split == "test" else ""
        raise ValueError(f"expected 'val' as the split to choose on, found {split!r}{reason}.")


def valid_keys(model: type[PydanticModel], values: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[str]:
    """Keys of a recipe and of its sections: of the kinds that `values` name, or of all."""
    for name, field in model.model_fields.items():
        yield prefix + name
        union = _union(field)
        if union is not None:
            kind = None if values is None else union.kind_of(values.get(name))
            yield from (f"{prefix}{name}.{key}" for key in union.keys(kind if kind in list(union.kinds) else None))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, PydanticModel):
            yield from valid_keys(field.annotation, None, f"{prefix}{name}.")


def _union(field: FieldInfo) -> OneOf | None:
    return next((entry for entry in field.metadata if isinstance(entry, OneOf)), None)


def parse_section(union: OneOf, values: Mapping[str, Any]) -> Any:
    """Validate one section that comes in kinds, as [`parse_config`]."""
    if (kind := union.kind_of(values)) not in union.kinds:
        raise ValueError(f"key 'kind': expected one of {', '.join(map(repr, union.kinds))}, found {kind!r}.")
    return parse_config(union.kinds[kind], values)


def add_config_arguments(parser: argparse.ArgumentParser, union: OneOf) -> None:
    """Add a flag for every key of a section's kinds; one not given leaves the preset's or the key's default."""
    default = f"defaults to {union.default}"
    parser.add_argument("--kind", choices=list(union.kinds), default=argparse.SUPPRESS, help=default)
    fields: dict[str, FieldInfo] = {}
    for section in union.kinds.values():
        fields = {**section.model_fields, **fields}
    del fields["kind"]
    for name, field in fields.items():
        shown = "set by --preset" if field.is_required() else f"defaults to {field.default}"
        kinds = [kind for kind in union.kinds if name in union.keys(kind)]
        only = f"of kind {', '.join(kinds)}" if len(kinds) < len(union.kinds) else ""
        text = "; ".join(part for part in (only, field.description, shown) if part)
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif "tuple" in str(field.annotation):
            options["nargs"] = "+"
        parser.add_argument(f"--{FLAGS.get(name, name)}", **options)


def option_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The flag of every argument, for [`typed_options`]."""
    return {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}


def config_values(arguments: argparse.Namespace, union: OneOf) -> dict[str, Any]:
    """The values of a section that were given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in union.keys()}
