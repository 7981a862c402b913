"""Recipes: one YAML file that names a whole run, validated before anything starts."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from torch import nn

from ..base_model import BaseModel
from ..models.auto import SECTIONS, AutoencoderSection, DiffusionSection
from ..sections import OneOf, without_foreign_keys
from ..tasks.auto import TaskConfig
from ..tasks.config import BaseTrainingConfig, CollectConfig
from .composition import FACTS, RULES, apply_override, merge_into, read_recipe, read_written
from .recipe_parts import find_part, named_recipes, read_part

# diffusers' name of a flag, where the recipe's key is another.
FLAGS = {"steps": "max_train_steps"}


class BaseModelConfig(PydanticModel):
    """The recipe's `base_model` section: what [`BaseModel`] is built by."""

    model_config = ConfigDict(extra="forbid")

    library: Literal["timm", "transformers", "import"]
    name: str
    kwargs: dict[str, Any] = {}
    pretrained: str | None = Field(
        None,
        description="of transformers: Hub id or folder of the weights to start from; timm has kwargs.pretrained",
    )
    trusted_imports: list[str] = Field([], description="own modules or factories that may be imported and called")

    @model_validator(mode="after")
    def _check_reference(self) -> BaseModelConfig:
        self.reference()
        if self.pretrained is not None and self.library != "transformers":
            raise ValueError(
                f"expected base_model.pretrained for transformers only, found {self.pretrained!r} for {self.library}; "
                "with timm set base_model.kwargs.pretrained=true."
            )
        return self

    def reference(self) -> BaseModel:
        """The base model, still without weights."""
        return BaseModel(self.library, self.name, dict(self.kwargs), trusted_imports=tuple(self.trusted_imports))

    def build(self) -> nn.Module:
        """The network that base training starts from, in eval mode; what `pretrained` lacks, such as a head, is new.

        Raises:
            ValueError: as [`BaseModel.build`], or there are no such pretrained weights.
        """
        model = self.reference().build()
        if self.pretrained is None:
            return model
        try:
            return type(model).from_pretrained(
                self.pretrained, config=model.config, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        except OSError as error:
            raise ValueError(
                f"base_model.pretrained: no weights under {self.pretrained!r} ({str(error).splitlines()[0]}); correct "
                "it, or set it to null to train from scratch."
            ) from error


class GenerateConfig(PydanticModel):
    """The recipe's `generate` section."""

    model_config = ConfigDict(extra="forbid")

    sampler: Literal["diffusion", "gaussian_latents"] = Field(
        "diffusion", description="gaussian_latents: latents of a normal distribution fitted to the encoded dataset"
    )
    num_samples: int = Field(100, ge=1)
    num_inference_steps: int = Field(20, ge=1)
    scheduler: Literal["dpmsolver++", "ddim", "ddpm"] = "dpmsolver++"
    truncation: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)


class EvaluateConfig(PydanticModel):
    """The recipe's `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(500, ge=1, description="examples per forward pass")
    max_cache_mb: int = Field(2048, ge=1, description="memory for activations that do not change")
    fine_tune: bool = Field(True, description="also fine-tune for as long as the generator took: twice the time")
    seed: int = Field(0, ge=0, description="of the baselines' draws")


class TrainingRecipe(PydanticModel):
    """The two training stages alone, for a dataset that is already there."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    autoencoder: AutoencoderSection
    diffusion: DiffusionSection


class Recipe(PydanticModel):
    """A whole run. `seed` is the seed of every section that does not set its own, except for the image splits."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, ge=0)
    task: TaskConfig
    base_model: BaseModelConfig
    base_training: BaseTrainingConfig = BaseTrainingConfig()
    collect: CollectConfig = CollectConfig()
    autoencoder: AutoencoderSection
    diffusion: DiffusionSection
    generate: GenerateConfig
    evaluate: EvaluateConfig

    @model_validator(mode="before")
    @classmethod
    def _share_seed(cls, values: dict) -> dict:
        seeded = ("base_training", "autoencoder", "diffusion", "generate", "evaluate")
        sections = {name: values.get(name) or {} for name in seeded}
        seed = values.get("seed", 0)
        shared = {name: {"seed": seed, **s} if isinstance(s, Mapping) else s for name, s in sections.items()}
        return {**values, **shared}


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package that have a file of their own; see [`composition`] for all others."""
    return named_recipes()


def load_recipe(
    source: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    preset: str | None = None,
    profile: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """Load a recipe, compose it of its parts and validate it.

    Args:
        source (`str` or `Path`): Name of a shipped recipe, `<network>-<selection>-<data>`, or a YAML file.
        overrides (`Sequence[str]`, *optional*): `"section.key=value"` with a YAML value each.
        seed (`int`, *optional*): Replaces the recipe's `seed`.
        preset (`str`, *optional*): `"paper"` or `"fast"`, see [`composition.read_recipe`].
        profile (`str`, *optional*): `"cpu-smoke"`.
        changes (`Mapping[str, Any]`, *optional*): Values by `"section.key"`, after all else; see [`compose_recipe`].

    Raises:
        ValueError: no such recipe or part, or an unknown key (with the nearest valid one), a missing key or a wrong
            value.
    """
    values = compose_recipe(source, overrides, preset, profile, changes)
    if seed is not None:
        values["seed"] = seed
    return parse_config(Recipe, values, also=(*FACTS, *RULES))


def compose_recipe(
    source: str | Path,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    profile: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values of a recipe, composed but not validated.

    What is shipped says something for every kind of a section; of that, what its kind has no key for is left out. So
    is what the user has written for one kind when `changes` make it another.

    Args:
        source, overrides, preset, profile, changes: See [`load_recipe`].
    """
    # JSON is YAML.
    overrides = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())]
    values, written = read_recipe(source, overrides, preset, profile), read_written(source, overrides)
    kept = {name: section for name, section in written.items() if f"{name}.kind" not in (changes or {})}
    return without_foreign_keys(SECTIONS, values, kept)


def load_training(
    dataset: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    preset: str | None = None,
    profile: str | None = None,
) -> TrainingRecipe:
    """The training stages on a parameter dataset, from defaults, preset, profile and overrides, in this order.

    Raises:
        ValueError: as [`load_recipe`]; keys of other sections are unknown here.
    """
    values: dict[str, Any] = {"autoencoder": {}, "diffusion": {}}
    for axis, name in (("preset", preset), ("profile", profile)):
        if name is not None:
            overlay = read_part(find_part(name, axis))
            merge_into(values, {section: overlay[section] for section in values if section in overlay})
    written: dict[str, Any] = {}
    for override in overrides:
        apply_override(values, override)
        apply_override(written, override)
    values = without_foreign_keys(SECTIONS, values, written)
    if seed is not None:
        values = {name: {"seed": seed, **section} for name, section in values.items()}
    return parse_config(TrainingRecipe, {"dataset": str(Path(dataset).resolve()), **values})


def parse_config(model: type[PydanticModel], values: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """Validate `values` by a pydantic model; the first problem becomes a `ValueError` of one line.

    Args:
        model (`type`): The pydantic model.
        values (`Mapping`): What is validated.
        also (`Sequence[str]`, *optional*): Further valid keys at the top level, to be named when they are misspelt.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # What is missing may be so because of another problem, such as a misspelt key or preset.
    problem = next((problem for problem in problems if problem["type"] != "missing"), problems[0])
    keys = [str(key) for key in problem["loc"]]
    names = [*_valid_keys(model, values), *also]
    path = ".".join(keys)
    while path not in names and len(keys) > 1 and problem["type"] not in ("extra_forbidden", "missing"):
        keys.pop()
        path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        parent = path.rpartition(".")[0]
        siblings = [name for name in names if name.rpartition(".")[0] == parent]
        near = difflib.get_close_matches(path, siblings, 1, 0.5) or difflib.get_close_matches(path, names, 1, 0.0)
        kind = f" of kind {_kinds(model, values)[parent]!r}" if path in _valid_keys(model) else ""
        raise ValueError(f"unknown key {path!r}{kind}; the nearest valid key is {near[0]!r}.")
    if problem["type"] == "missing":
        raise ValueError(f"key {path!r} is missing; it has no default.")
    if problem["type"] == "literal_error" and keys[-1] == "kind":
        raise ValueError(f"key {path!r}: expected one of {problem['ctx']['expected']}, found {problem['input']!r}.")
    if problem["type"] == "value_error":
        raise ValueError(f"key {path!r}: {problem['ctx']['error']}")
    expected = problem["msg"].removeprefix("Input should be ")
    raise ValueError(f"key {path!r}: expected {expected}, found {problem['input']!r}.")


def recipe_keys() -> list[str]:
    """Every key of a recipe as `section.key`, and the sections."""
    return list(dict.fromkeys(_valid_keys(Recipe)))


def _valid_keys(
    model: type[PydanticModel], values: Mapping[str, Any] | None = None, prefix: str = ""
) -> Iterator[str]:
    """Keys of a recipe and of its sections: of the kinds that `values` name, or of all."""
    for name, field in model.model_fields.items():
        yield prefix + name
        union = _union(field)
        if union is not None:
            kind = None if values is None else union.kind_of(values.get(name))
            yield from (f"{prefix}{name}.{key}" for key in union.keys(kind if kind in list(union.kinds) else None))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, PydanticModel):
            yield from _valid_keys(field.annotation, None, f"{prefix}{name}.")


def _union(field: FieldInfo) -> OneOf | None:
    return next((entry for entry in field.metadata if isinstance(entry, OneOf)), None)


def _kinds(model: type[PydanticModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds of the sections that come in several."""
    unions = {name: _union(field) for name, field in model.model_fields.items()}
    return {name: union.kind_of(values.get(name)) for name, union in unions.items() if union is not None}


def parse_section(union: OneOf, values: Mapping[str, Any]) -> Any:
    """Validate one section that comes in kinds, as [`parse_config`].

    Args:
        union ([`OneOf`]): Such as `models.auto.AUTOENCODER`.
        values (`Mapping`): Its keys.
    """
    if (kind := union.kind_of(values)) not in union.kinds:
        raise ValueError(f"key 'kind': expected one of {', '.join(map(repr, union.kinds))}, found {kind!r}.")
    return parse_config(union.kinds[kind], values)


def add_config_arguments(parser: argparse.ArgumentParser, union: OneOf) -> None:
    """Add a flag for every key of a section; a flag not given leaves the preset's or the key's default.

    Args:
        parser (`argparse.ArgumentParser`): Receives the flags.
        union ([`OneOf`]): The section; flags are those of all its kinds.
    """
    shown = f"defaults to {union.default}"
    parser.add_argument("--kind", choices=list(union.kinds), default=argparse.SUPPRESS, help=shown)
    fields: dict[str, FieldInfo] = {}
    for section in union.kinds.values():
        fields = {**section.model_fields, **fields}
    del fields["kind"]
    for name, field in fields.items():
        flag = f"--{FLAGS.get(name, name)}"
        shown = "" if field.is_required() else f"defaults to {field.default}"
        kinds = [kind for kind in union.kinds if name in union.keys(kind)]
        only = f"of kind {', '.join(kinds)}" if len(kinds) < len(union.kinds) else ""
        text = "; ".join(part for part in (only, field.description, shown or "set by --preset") if part)
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif "tuple" in str(field.annotation):
            parser.add_argument(flag, nargs="+", **options)
        else:
            parser.add_argument(flag, **options)


def config_values(arguments: argparse.Namespace, union: OneOf) -> dict[str, Any]:
    """The values of a section that were given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in union.keys()}
