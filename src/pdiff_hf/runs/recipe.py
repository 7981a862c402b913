"""Recipes: one YAML file that names a whole run, validated before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, model_validator

from ..base_model import BaseModel
from ..builders import build_network, timm_name
from ..models.auto import AutoencoderSection, DiffusionSection
from ..models.few_rows import fit_to_rows
from ..own_code import package_path
from ..sections import without_foreign_keys
from ..strict_yaml import read_mapping
from ..tasks.auto import TaskConfig
from ..tasks.config import BaseTrainingConfig, CollectConfig
from ..tasks.runs_config import CollectSection, from_version_0_1
from ..wording import setting
from .composition import FACTS, RULES, apply_override, merge_into, read_overlays, read_recipe, read_written
from .folder import RECIPE_FILE, SECTIONS
from .validation import parse_config, valid_keys

if TYPE_CHECKING:
    from torch import nn


class BaseModelConfig(PydanticModel):
    """The recipe's `base_model` section: what [`BaseModel`] is built by."""

    model_config = ConfigDict(extra="forbid")

    library: Literal["timm", "torchvision", "transformers", "import"]
    name: str
    kwargs: dict[str, Any] = {}
    pretrained: str | None = Field(
        None,
        description="weights to start from. transformers: Hub id or folder; timm: a file of safetensors or torch.save "
        "in place of those that kwargs.pretrained downloads. package:NAME/path is inside an installed package",
    )
    adapter: dict[str, Any] | None = Field(
        None,
        description="configuration of a PEFT adapter around the network, as adapter_config.json has it; the selection "
        "`adapter` then is what is trained",
    )
    trusted_imports: list[str] = Field([], description="own modules or factories that may be imported and called")

    @model_validator(mode="after")
    def _check_reference(self) -> BaseModelConfig:
        self.reference()
        if self.pretrained is not None and self.library != "transformers" and self._timm_name is None:
            raise ValueError(
                f"expected base_model.pretrained for transformers and timm only, found {self.pretrained!r} for "
                f"{self.name} of {self.library}; leave it out."
            )
        return self

    @property
    def _timm_name(self) -> str | None:
        return timm_name(self.library, self.name, self.kwargs)

    @property
    def is_untrained(self) -> bool:
        """Whether the network is known to begin without trained weights; of a user's factory nothing is known."""
        is_known = self.library != "import" or self._timm_name is not None
        return is_known and self.pretrained is None and not self.kwargs.get("pretrained")

    def reference(self) -> BaseModel:
        """The base model, still without weights."""
        own = {"adapter": self.adapter, "trusted_imports": tuple(self.trusted_imports)}
        return BaseModel(self.library, self.name, dict(self.kwargs), **own)

    def build(self) -> nn.Module:
        """The network that base training starts from, in eval mode; what `pretrained` lacks, such as a head, is new.

        Raises:
            ValueError: as [`BaseModel.build`], or there are no such pretrained weights.
        """
        if self.adapter is not None:
            from ..adapters.network import add_adapter

            bare = self.model_copy(update={"adapter": None})
            return add_adapter(bare.build(), self.reference().adapter)
        if self.pretrained is not None and self._timm_name is not None:
            return self._build_timm()
        model = self.reference().build()
        if self.pretrained is None:
            return model
        import torch

        try:
            return type(model).from_pretrained(
                package_path(self.pretrained), config=model.config, ignore_mismatched_sizes=True, dtype=torch.float32
            )
        except OSError as error:
            raise ValueError(
                f"base_model.pretrained: no weights under {self.pretrained!r} ({str(error).splitlines()[0]}); correct "
                "it, or set it to null to train from scratch."
            ) from error

    def _build_timm(self) -> nn.Module:
        from ..networks import TimmWithHead
        from ..weights import load_backbone

        model = build_network(self.library, self.name, self.kwargs, pretrained=False, trusted_imports=())
        file = Path(package_path(self.pretrained))
        if isinstance(model, TimmWithHead):
            load_backbone(model.network, file)
        else:
            load_backbone(model, file)
            # Some begin with a classifier for training from scratch, whose weights are large for features like these.
            model.reset_classifier(model.num_classes)
        return model.eval()


class GenerateConfig(PydanticModel):
    """The recipe's `generate` section."""

    model_config = ConfigDict(extra="forbid")

    sampler: Literal["diffusion", "gaussian_latents"] = Field(
        "diffusion", description="gaussian_latents: latents of a normal distribution fitted to the encoded dataset"
    )
    num_samples: int = Field(100, ge=1, description="networks; of a collection of many tasks, for every unseen task")
    num_inference_steps: int = Field(20, ge=1)
    scheduler: Literal["dpmsolver++", "ddim", "ddpm"] = "dpmsolver++"
    truncation: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)
    condition: dict[str, Any] | list[dict[str, Any]] | None = Field(
        None, description="what networks are for, {kind: value}, of a pipeline with conditions; a list has one each"
    )
    guidance_scale: float = Field(
        1.0, ge=0, description="of conditions: 1 as they were learned, more exaggerates them, 0 leaves them out"
    )


class EvaluateConfig(PydanticModel):
    """The recipe's `evaluate` section."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(500, ge=1, description="examples per forward pass")
    max_cache_mb: int = Field(2048, ge=1, description="memory for activations that do not change")
    held_out: list[Literal["block", "end", "run"]] = Field(
        ["block", "end", "run"],
        description="rows without which further denoisers are trained, where there are such, each in the time of the "
        "diffusion stage",
    )
    rivals: list[Literal["pdiff", "pdiff_aligned"]] = Field(
        ["pdiff", "pdiff_aligned"],
        description="of zoos of independent runs with an autoencoder that compares functions: p-diff as published, "
        "without and with weight matching before, is trained on the same rows; of many tasks, whether networks are "
        "also trained from labels of the unseen ones (few-shot, hypernetwork, fine-tuned)",
    )
    hypernetwork_steps: int = Field(
        2000, ge=1, description="of the rival that learns from the labels of many tasks, see `rivals`"
    )
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
    collect: CollectSection = CollectConfig()
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
        collect = {"collect": from_version_0_1(values["collect"])} if "collect" in values else {}
        return {**values, **shared, **collect}


def check_condition(recipe: Recipe) -> None:
    """Raise `ValueError` where networks will be drawn for a condition that nobody has named.

    Networks of a collection of tasks are drawn for the unseen ones.
    """
    collected, generate = recipe.collect, recipe.generate
    asks = generate.sampler == "diffusion" and generate.condition is None and generate.guidance_scale != 0
    is_told = getattr(recipe.diffusion, "condition", False) is not False
    if asks and is_told and getattr(collected, "metric", None) and collected.kind != "tasks":
        example = dict.fromkeys(collected.metric, 0.9)
        raise ValueError(
            f"collect.metric makes {', '.join(collected.metric)} conditions, and networks are drawn for one: give "
            f"{setting('generate.condition', json.dumps({'metric': example}))}, or generate.guidance_scale=0 for "
            "networks without."
        )


AnyRecipe = TypeVar("AnyRecipe", TrainingRecipe, Recipe)


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
        source, overrides, preset, profile: See [`composition.read_recipe`].
        seed (`int`, *optional*): Replaces the recipe's `seed`.
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

    The arguments are those of [`load_recipe`].
    """
    # JSON is YAML.
    overrides = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in (changes or {}).items())]
    values, written = read_recipe(source, overrides, preset, profile), read_written(source, overrides)
    kept = {name: section for name, section in written.items() if f"{name}.kind" not in (changes or {})}
    return without_foreign_keys(SECTIONS, values, kept)


def fit_recipe(recipe: AnyRecipe, num_rows: int | None = None) -> tuple[AnyRecipe, list[str]]:
    """A recipe as so many checkpoints need it, by default as many as it collects; see [`fit_to_rows`]."""
    if num_rows is None:
        num_rows = recipe.collect.num_rows
    autoencoder, diffusion, lines = fit_to_rows(recipe.autoencoder, recipe.diffusion, num_rows)
    return recipe.model_copy(update={"autoencoder": autoencoder, "diffusion": diffusion}), lines


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
    for _, overlay in read_overlays(preset, profile):
        merge_into(values, {section: overlay[section] for section in values if section in overlay})
    written: dict[str, Any] = {}
    for override in overrides:
        apply_override(values, override)
        apply_override(written, override)
    values = without_foreign_keys(SECTIONS, values, written)
    if seed is not None:
        values = {name: {"seed": seed, **section} for name, section in values.items()}
    return parse_config(TrainingRecipe, {"dataset": str(Path(dataset).resolve()), **values})


def recorded_section(
    folder: str | Path, name: Literal["generate", "evaluate"], given: Mapping[str, Any] | None = None
) -> Any:
    """A section of the recipe in a run folder, its defaults without one; what is `given` and not `None` wins.

    Raises:
        ValueError: a value is not valid.
    """
    path = Path(folder) / RECIPE_FILE
    values = read_mapping(path) if os.path.lexists(path) else {}
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if not isinstance(section := values.get(name, {}), dict):
        raise ValueError(f"{path}: expected keys and values in {name!r}, found {section!r:.200}.")
    return parse_config(Recipe.model_fields[name].annotation, {**section, **given})


def recipe_keys() -> list[str]:
    """Every key of a recipe as `section.key`, and the sections."""
    return list(dict.fromkeys(valid_keys(Recipe)))
