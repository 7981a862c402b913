"""Recipes: one YAML file that names a whole run, validated before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, ValidationError, model_validator

from .base_model import BaseModel
from .tasks import BaseTrainingConfig, CollectConfig, TaskConfig
from .training import AutoencoderConfig, DiffusionConfig


class BaseModelConfig(PydanticModel):
    """The recipe's `base_model` section: what [`BaseModel`] is built by."""

    model_config = ConfigDict(extra="forbid")

    library: Literal["timm", "transformers", "import"]
    name: str
    kwargs: dict[str, Any] = {}
    trusted_imports: list[str] = Field([], description="own modules or factories that may be imported and called")

    @model_validator(mode="after")
    def _check_reference(self) -> BaseModelConfig:
        self.reference()
        return self

    def reference(self) -> BaseModel:
        """The base model, still without weights."""
        return BaseModel(self.library, self.name, dict(self.kwargs))


class GenerateConfig(PydanticModel):
    """The recipe's `generate` section."""

    model_config = ConfigDict(extra="forbid")

    num_samples: int = Field(100, ge=1)
    num_inference_steps: int = Field(20, ge=1)
    scheduler: Literal["dpmsolver++", "ddim", "ddpm"] = "dpmsolver++"
    truncation: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)


class EvaluateConfig(PydanticModel):
    """The recipe's `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(500, ge=1, description="images per forward pass")
    max_cache_mb: int = Field(2048, ge=1, description="memory for activations that do not change")
    fine_tune: bool = Field(True, description="also fine-tune for as long as the generator took")
    seed: int = Field(0, ge=0, description="of the baselines' draws")


class TrainingRecipe(PydanticModel):
    """The two training stages alone, for a dataset that is already there."""

    model_config = ConfigDict(extra="forbid")

    dataset: str
    autoencoder: AutoencoderConfig
    diffusion: DiffusionConfig


class Recipe(PydanticModel):
    """A whole run. `seed` is the seed of every section that does not set its own, except for the image splits."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, ge=0)
    task: TaskConfig
    base_model: BaseModelConfig
    base_training: BaseTrainingConfig = BaseTrainingConfig()
    collect: CollectConfig = CollectConfig()
    autoencoder: AutoencoderConfig
    diffusion: DiffusionConfig
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
    """Names of the recipes in the package."""
    folder = resources.files("pdiff_hf") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(source: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Load a recipe and validate it.

    Args:
        source (`str` or `Path`): Name of a shipped recipe, or a YAML file.
        overrides (`Sequence[str]`, *optional*): `"section.key=value"` with a YAML value each.
        seed (`int`, *optional*): Replaces the recipe's `seed`.

    Raises:
        ValueError: no such recipe, or an unknown key (with the nearest valid one), a missing key or a wrong value.
    """
    if str(source) in shipped_recipes():
        text = (resources.files("pdiff_hf") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no recipe {str(source)!r}: expected a YAML file or one of {', '.join(shipped_recipes())}.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected sections such as 'task' and 'collect', found {values!r}.")
    for override in overrides:
        _override(values, override)
    if seed is not None:
        values["seed"] = seed
    return parse_config(Recipe, values)


def load_training(dataset: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> TrainingRecipe:
    """The training stages on a parameter dataset, from defaults and overrides.

    Raises:
        ValueError: as [`load_recipe`]; keys of other sections are unknown here.
    """
    values: dict[str, Any] = {"autoencoder": {}, "diffusion": {}}
    for override in overrides:
        _override(values, override)
    if seed is not None:
        values = {name: {"seed": seed, **section} for name, section in values.items()}
    return parse_config(TrainingRecipe, {"dataset": str(Path(dataset).resolve()), **values})


def _override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"--set {override!r}: expected section.key=value.")
    for index, key in enumerate(keys[:-1]):
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {override!r}: {'.'.join(keys[: index + 1])} is a value, not a section.")
    try:
        values[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override!r}: the value is not valid YAML.") from error


def parse_config(model: type[PydanticModel], values: Mapping[str, Any]) -> Any:
    """Validate `values` by a pydantic model; the first problem becomes a `ValueError` of one line."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # What is missing may be so because of another problem, such as a misspelt key or preset.
    problem = next((problem for problem in problems if problem["type"] != "missing"), problems[0])
    names = list(_valid_keys(model))
    # A union's branches stand in the location as well; they are no keys.
    keys = [str(key) for key in problem["loc"]]
    path = ".".join(keys)
    while path not in names and len(keys) > 1 and problem["type"] not in ("extra_forbidden", "missing"):
        keys.pop()
        path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        parent = path.rpartition(".")[0]
        siblings = [name for name in names if name.rpartition(".")[0] == parent]
        near = difflib.get_close_matches(path, siblings, 1, 0.5) or difflib.get_close_matches(path, names, 1, 0.0)
        raise ValueError(f"unknown key {path!r}; the nearest valid key is {near[0]!r}.")
    if problem["type"] == "missing":
        raise ValueError(f"key {path!r} is missing; it has no default.")
    if problem["type"] == "value_error":
        raise ValueError(f"key {path!r}: {problem['ctx']['error']}")
    expected = problem["msg"].removeprefix("Input should be ")
    raise ValueError(f"key {path!r}: expected {expected}, found {problem['input']!r}.")


def _valid_keys(model: type[PydanticModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, PydanticModel):
            yield from _valid_keys(field.annotation, f"{prefix}{name}.")
