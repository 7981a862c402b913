"""Axes of an ablation: short names for keys of the recipe, and any key itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...models.auto import AUTOENCODERS
from ...strict_yaml import parse_yaml
from ..composition import FACTS
from ..folder import SECTIONS
from ..recipe import Recipe, recipe_keys

# Standard deviations of the noise where the recipe has none, the paper's.
NOISE = {"autoencoder.input_noise": 1e-3, "autoencoder.latent_noise": 1e-1}
LATENT_NOISE = ("autoencoder.latent_noise", "diffusion.latent_noise")
NOISES = {"none": (False, False), "input": (True, False), "latent": (False, True), "both": (True, True)}
SAMPLERS = {"diffusion": "diffusion", "vae": "gaussian_latents"}
# Axes that decide which keys a section has.
KIND_AXES = ("autoencoder", *(f"{section}.kind" for section in SECTIONS))


@dataclass(frozen=True)
class NamedAxis:
    """An axis with a name of its own: what a value changes in a recipe, and which value a recipe has."""

    help: str
    changes: Callable[[str, Recipe], dict[str, Any]]
    current: Callable[[Recipe], str]


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse all `--axis` options, `"name=value,value"`; commas inside of brackets and quotes do not count.

    Raises:
        ValueError: not of this form, an unknown axis (with the nearest valid one), or one or a value given twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, separator, rest = text.partition("=")
        name, values = name.strip(), _split(rest)
        if not separator or not name or not all(values):
            raise ValueError(f"--axis {text!r}: expected NAME=VALUE,VALUE,…")
        # Whether a section has the key is found when the recipe is loaded.
        section, dot, _ = name.partition(".")
        if name == "seed":
            raise ValueError("--axis seed: seeds are no axis, a point has all of them; give --seeds 0 1 2.")
        if name not in AXES and not (dot and section in Recipe.model_fields):
            keys = [key for key in recipe_keys() if "." in key]
            near = difflib.get_close_matches(name, [*AXES, *keys], 1, 0.0)[0]
            raise ValueError(f"--axis: unknown axis {name!r}; the nearest valid one is {near!r}.")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"--axis {name}: value {twice[0]!r} is given twice.")
        if name in axes:
            raise ValueError(f"--axis {name} is given twice; list all values in one, {name}=VALUE,VALUE,…")
        axes[name] = values
    return axes


def axis_changes(axis: str, value: str, recipe: Recipe) -> dict[str, Any]:
    """Keys that differ from `recipe` at a value of an axis, with their new values.

    Raises:
        ValueError: the value is not one of this axis.
    """
    if axis in AXES:
        return AXES[axis].changes(value, recipe)
    return {axis: parse_yaml(value, f"--axis {axis}: the value {value!r}")}


def current_value(axis: str, recipe: Recipe) -> str:
    """The value that a recipe has on an axis, as text."""
    if axis in AXES:
        return AXES[axis].current(recipe)
    return _text(_get(recipe, axis))


def _num_checkpoints(value: str, recipe: Recipe) -> dict[str, Any]:
    # Needs torch.
    from ...data.vectors import split_rows

    number = _positive("num_checkpoints", value)
    changes: dict[str, Any] = {"collect.num_checkpoints": number}
    try:
        train_rows, _ = split_rows(recipe.collect.runs * number, recipe.autoencoder.holdout_every)
        fitting = recipe.autoencoder.fit_latents(recipe.diffusion, len(train_rows)).model_dump()
    except ValueError:
        # The run says so, and becomes a row of its own.
        return changes
    given = recipe.autoencoder.model_dump()
    return changes | {f"autoencoder.{key}": value for key, value in fitting.items() if value != given[key]}


def _noise(value: str, recipe: Recipe) -> dict[str, Any]:
    on_input, on_latent = NOISES[_one_of("noise", value, NOISES)]
    wanted = {"autoencoder.input_noise": on_input, **dict.fromkeys(LATENT_NOISE, on_latent)}
    # A kind that has no such noise has none to change.
    present = {key: noise for key in wanted if (noise := _get(recipe, key)) is not None}
    # The denoiser's own noise is ours, not the paper's: it is turned off with the latent's, but never on.
    changes = {key: (noise or NOISE.get(key, 0.0)) if wanted[key] else 0.0 for key, noise in present.items()}
    return {key: noise for key, noise in changes.items() if noise != present[key]}


def _current_noise(recipe: Recipe) -> str:
    found = tuple(any(_get(recipe, key) for key in keys) for keys in (("autoencoder.input_noise",), LATENT_NOISE))
    return next(name for name, noise in NOISES.items() if noise == found)


def _timesteps(value: str, recipe: Recipe) -> dict[str, Any]:
    number = _positive("timesteps", value)
    changes = {"diffusion.num_train_timesteps": number}
    # There cannot be more denoising steps than timesteps.
    if recipe.generate.num_inference_steps > number:
        changes["generate.num_inference_steps"] = number
    return changes


def _layer(value: str, recipe: Recipe) -> dict[str, Any]:
    if value == "fc":
        return {"collect.select": "head"}
    fact = value.replace("-", "_")
    if fact in FACTS:
        return {"collect.select": f"${{{fact}}}"}
    is_list = value.startswith("[")
    return {"collect.select": parse_yaml(value, f"--axis layer: the value {value!r}") if is_list else value}


def _autoencoder(value: str, recipe: Recipe) -> dict[str, Any]:
    kind = _one_of("autoencoder", value, AUTOENCODERS)
    changes = {"autoencoder.kind": kind}
    # There are more parameters than checkpoints: their Gaussian cannot be fitted.
    if AUTOENCODERS[kind].latents_grow and recipe.diffusion.contains_gaussian:
        changes["diffusion.kind"] = "unet_1d"
    return changes


def _choice(axis: str, key: str, values: dict[str, str]) -> NamedAxis:
    """An axis whose values are names for those of a key."""
    names = {meaning: name for name, meaning in values.items()}
    return NamedAxis(
        f"{', '.join(values)}: `{key}`",
        lambda value, recipe: {key: values[_one_of(axis, value, values)]},
        lambda recipe: names[_get(recipe, key)],
    )


def _positive(axis: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"--axis {axis}: expected a positive whole number, found {value!r}.")
    return int(value)


def _one_of(axis: str, value: str, values: Collection[str]) -> str:
    if value not in values:
        raise ValueError(f"--axis {axis}: expected one of {', '.join(values)}, found {value!r}.")
    return value


def _get(recipe: Recipe, key: str) -> Any:
    found: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        found = (found or {}).get(part)
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


AXES = {
    "num_checkpoints": NamedAxis(
        "K, the first K checkpoints of the longest collection: `collect.num_checkpoints`; for small K the latents "
        "shrink to as many values as the checkpoints tell apart",
        _num_checkpoints,
        lambda recipe: str(recipe.collect.rows_per_run),
    ),
    "noise": NamedAxis(
        "none, input, latent, both: `autoencoder.input_noise`; `autoencoder.latent_noise`, `diffusion.latent_noise`",
        _noise,
        _current_noise,
    ),
    "timesteps": NamedAxis(
        "T: `diffusion.num_train_timesteps`, and no more `generate.num_inference_steps` than that",
        _timesteps,
        lambda recipe: str(recipe.diffusion.num_train_timesteps),
    ),
    "layer": NamedAxis(
        "first_conv, fc, bn10-13, bn14-15, bn16-17 and what else the recipe's network names, all, head, last_norms:K, "
        "globs: `collect.select`",
        _layer,
        lambda recipe: _text(recipe.collect.select),
    ),
    "sampling": _choice("sampling", "generate.sampler", SAMPLERS),
    "optimizer": _choice("optimizer", "collect.optimizer", {name: name for name in ("adamw", "adam", "sgd")}),
    "autoencoder": NamedAxis(
        f"{', '.join(AUTOENCODERS)}: `autoencoder.kind`; for none also `diffusion.kind`",
        _autoencoder,
        lambda recipe: recipe.autoencoder.kind,
    ),
}
