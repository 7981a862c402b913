"""Command line flags of the training scripts, made from the configs, named as in diffusers' examples."""

from __future__ import annotations

import argparse
from typing import Any

from pydantic import BaseModel

# diffusers' name of a flag, where the recipe's key is another.
FLAGS = {"steps": "max_train_steps"}


def add_config_arguments(parser: argparse.ArgumentParser, config: type[BaseModel]) -> None:
    """Add a flag for every field of a config; a flag not given leaves the preset's or the field's default."""
    for name, field in config.model_fields.items():
        flag = f"--{FLAGS.get(name, name)}"
        shown = "" if field.is_required() else f"defaults to {field.default}"
        text = " ".join(part for part in (field.description, shown or "set by --preset") if part).replace("%", "%%")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif "tuple" in str(field.annotation):
            parser.add_argument(flag, nargs="+", **options)
        else:
            parser.add_argument(flag, **options)


def config_values(arguments: argparse.Namespace, config: type[BaseModel]) -> dict[str, Any]:
    """The values of a config that were given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in config.model_fields}
