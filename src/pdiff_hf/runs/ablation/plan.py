"""The points of an ablation, and what they share."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...files import errors_of
from ...locks import LOCK_FILE
from ...strict_yaml import read_mapping
from ...wording import argument
from ..folder import first_difference
from ..recipe import Recipe, fit_recipe, load_recipe
from ..validation import parse_config
from .axes import KIND_AXES, axis_changes, current_value

PLAN_FILE = "ablation.yaml"
BASE = "base"
# Sections of the recipe that a stage depends on, beside those of the stages before it and the seed.
STAGE_SECTIONS = {
    "collect": ("task", "base_model", "base_training", "collect"),
    "autoencoder": ("autoencoder",),
    "diffusion": ("diffusion",),
}


@dataclass(frozen=True)
class Point:
    """One setting of an ablation: the name of its folder, and its value on every axis.

    `changes` are the keys of the recipe that differ from the base; `recipes` are by seed, `None` for the recipe's own.
    """

    name: str
    values: dict[str, str]
    changes: dict[str, Any]
    recipes: dict[int | None, Recipe]


@dataclass(frozen=True)
class Job:
    """An ordinary run: one point with one seed.

    `sources` are, by stage, the jobs that make what this one would make too. For `collect` that may have more
    checkpoints, of which this one's are the first. `wave` is 0 when it needs no other, else one more than the latest
    of those it takes something from.
    """

    point: Point
    seed: int | None
    sources: dict[str, Job]
    wave: int

    @property
    def recipe(self) -> Recipe:
        """What its run is made by."""
        return self.point.recipes[self.seed]

    @property
    def folder(self) -> Path:
        """Its run folder within the ablation's."""
        folder = Path("points") / self.point.name
        return folder if self.seed is None else folder / f"seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """An ablation, before anything is run.

    The base recipe was loaded by `recipe` and `options` (overrides, preset, profile). `seeds` are empty for its own;
    `base` is its value on every axis, which is among the ordered values of `axes`, and the first of the `points`,
    which are all combinations with `grid`.
    """

    recipe: str
    options: dict[str, Any]
    seeds: list[int]
    grid: bool
    axes: dict[str, list[str]]
    base: dict[str, str]
    points: list[Point]

    def on_axis(self, axis: str) -> list[tuple[str, Point]]:
        """Value and point along an axis through the base."""
        wanted = {value: {**self.base, axis: value} for value in self.axes[axis]}
        return [(value, point) for value in wanted for point in self.points if point.values == wanted[value]]


def make_plan(
    recipe: str,
    axes: Mapping[str, Sequence[str]],
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
    grid: bool = False,
    preset: str | None = None,
    profile: str | None = None,
) -> Plan:
    """Load the recipe of every point.

    Args:
        recipe, overrides, preset, profile: Of [`load_recipe`].
        axes (`Mapping[str, Sequence[str]]`): Values by axis, as [`parse_axes`] gives them.
        seeds (`Sequence[int]`, *optional*): Every point is run with each; the recipe's own by default.
        grid (`bool`, *optional*, defaults to `False`): All combinations of values, instead of each axis alone.

    Raises:
        ValueError: an axis, a value or the recipe is not valid.
    """
    load = partial(load_recipe, recipe, preset=preset, profile=profile)
    first_seed = seeds[0] if seeds else None
    base = load(overrides, first_seed)
    _check_collection(recipe, base)

    # 1. The base recipe's own value on every axis, which may be among those given under another name
    ordered, base_values = {}, {}
    for axis, given in axes.items():
        values = list(given)
        same = [value for value in values if _apply(load, overrides, {axis: value}, first_seed)[1] == base]
        if not same:
            same = [current_value(axis, base)]
            values.insert(0, same[0])
        # Numbers in their order, others as they were given.
        with suppress(ValueError):
            values = sorted(values, key=float)
        ordered[axis], base_values[axis] = values, same[0]

    # 2. Points, those with the same recipe only once
    if grid:
        combinations = [dict(zip(ordered, chosen, strict=True)) for chosen in itertools.product(*ordered.values())]
    else:
        combinations = [{**base_values, axis: value} for axis, values in ordered.items() for value in values]
    points: list[Point] = []
    for values in [base_values, *combinations]:
        varied = {axis: value for axis, value in values.items() if value != base_values[axis]}
        if any(point.values == values for point in points):
            continue
        changes, _ = _apply(load, overrides, varied, first_seed)
        recipes = {seed: _fitted(load(overrides, seed, changes=changes)) for seed in (seeds or [None])}
        _check_collection(recipe, *recipes.values())
        points.append(Point(_name(varied, points), values, changes, recipes))
    options = {"overrides": list(overrides), "preset": preset, "profile": profile}
    return Plan(recipe, options, list(seeds), grid, ordered, base_values, points)


def _check_collection(name: str, *recipes: Recipe) -> None:
    """Raise `ValueError` unless checkpoints are those of one training, which points share, and have no conditions."""
    told = {"tasks": "networks of many tasks", "runs": "networks of independent runs"}
    for kind in (recipe.collect.kind for recipe in recipes):
        if kind != "trajectory":
            raise ValueError(
                f"{name} collects {told[kind]} (collect.kind={kind}), and points of an ablation share checkpoints of "
                f"one training; run it once for each value instead: pdiff run {name} --set KEY=VALUE."
            )


def _fitted(recipe: Recipe) -> Recipe:
    """As many checkpoints as it collects need it; the run of one that collects too few says so."""
    with suppress(ValueError):
        return fit_recipe(recipe)[0]
    return recipe


def open_ablation(plan: Plan, folder: str | Path) -> dict[str, list[str]]:
    """The axes of an ablation's folder together with those of a plan. Nothing is written yet.

    Raises:
        ValueError: the folder holds another ablation or other files.
    """
    folder = Path(folder)
    path, axes = folder / PLAN_FILE, plan.axes
    if path.is_file():
        found = read_mapping(path)
        if missing := {"recipe", "seeds", "grid", "axes"} - found.keys():
            raise ValueError(
                f"{path}: expected the key {min(missing)!r}, found none; choose another {argument('folder')}."
            )
        wanted = definition(plan)
        with errors_of(path):
            # Keys that came later than the folder have their defaults.
            found["recipe"] = parse_config(Recipe, found["recipe"]).model_dump(mode="json")
            _check_axes(found["axes"])
        same = {key: found[key] for key in ("recipe", "seeds", "grid")}
        if difference := first_difference(same, {key: wanted[key] for key in same}):
            raise ValueError(f"{folder} holds another ablation: {difference}. Choose another {argument('folder')}.")
        axes = found["axes"] | {axis: [*found["axes"].get(axis, []), *values] for axis, values in plan.axes.items()}
        return {axis: list(dict.fromkeys(values)) for axis, values in axes.items()}
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the ablation, {folder} is a file.")
    if others := [e.name for e in folder.iterdir() if e.name != LOCK_FILE] if folder.exists() else []:
        raise ValueError(f"{folder} holds {others[0]} but is no ablation of pdiff; choose a new or empty folder.")
    return dict(axes)


def _check_axes(axes: Any) -> None:
    is_named = isinstance(axes, dict) and all(isinstance(values, list) for values in axes.values())
    if not is_named or not all(isinstance(value, str) for values in axes.values() for value in values):
        raise ValueError(f"expected the axes with a list of texts each, found {axes!r:.200}.")


def definition(plan: Plan) -> dict[str, Any]:
    """What makes an ablation, as its folder keeps it."""
    base = next(iter(plan.points[0].recipes.values())).model_dump(mode="json")
    return {"recipe": base, "seeds": plan.seeds, "grid": plan.grid, "axes": plan.axes}


def make_jobs(plan: Plan) -> list[Job]:
    """All runs of an ablation, those that others take something from first."""
    runs = [(point, seed) for point in plan.points for seed in (plan.seeds or [None])]
    keys = {(point.name, seed): stage_keys(point.recipes[seed]) for point, seed in runs}

    # 1. Of runs that share a collection, the one with most checkpoints makes it
    leaders: dict[str, tuple[Point, int | None]] = {}
    for point, seed in sorted(runs, key=lambda run: -run[0].recipes[run[1]].collect.num_checkpoints):
        leaders.setdefault(keys[point.name, seed]["collection"], (point, seed))
    runs.sort(key=lambda run: run not in leaders.values())

    # 2. Everything else is made by the first that needs it
    makers: dict[tuple[str, str], Job] = {}
    jobs = []
    for point, seed in runs:
        own = keys[point.name, seed]
        sources = {stage: makers[stage, key] for stage, key in own.items() if (stage, key) in makers}
        if "collection" in sources:
            sources.setdefault("collect", sources.pop("collection"))
        job = Job(point, seed, sources, 1 + max((source.wave for source in sources.values()), default=-1))
        jobs.append(job)
        for stage, key in own.items():
            makers.setdefault((stage, key), job)
    return sorted(jobs, key=lambda job: job.wave)


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """What the results of the stages up to the pipeline depend on; recipes with the same key make the same.

    `collection` is that of the longest collection that this one's checkpoints are the first of.
    """
    values = recipe.model_dump(mode="json")
    keys, known = {}, {"seed": recipe.seed}
    for stage, sections in STAGE_SECTIONS.items():
        known = {**known, **{section: values[section] for section in sections}}
        keys[stage] = _digest(known)
    config = recipe.collect
    if config.runs == 1 and config.num_checkpoints > 1:
        del values["collect"]["num_checkpoints"]
    known = {section: values[section] for section in STAGE_SECTIONS["collect"]}
    return {**keys, "collection": _digest({"seed": recipe.seed, **known})}


def base_model_key(recipe: Recipe) -> str:
    """What the trained base model depends on."""
    return _digest(recipe.model_dump(mode="json", include={"task", "base_model", "base_training"}))


def _apply(load, overrides: Sequence[str], values: Mapping[str, str], seed: int | None) -> tuple[dict, Recipe]:
    """What the values of some axes change, one after another, and the recipe that comes out."""
    changes: dict[str, Any] = {}
    recipe = load(overrides, seed)
    # A kind first, because it decides which keys there are; the number last, because how large latents may be depends
    # on all else.
    for axis in sorted(values, key=lambda axis: (axis == "num_checkpoints", axis not in KIND_AXES)):
        changes |= axis_changes(axis, values[axis], recipe)
        recipe = load(overrides, seed, changes=changes)
    return changes, recipe


def _name(varied: Mapping[str, str], points: Sequence[Point]) -> str:
    text = "_".join(f"{axis.rpartition('.')[2]}-{value}" for axis, value in varied.items()) or BASE
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("._")[:80]
    # Values may differ in other characters only.
    if any(point.name == name for point in points):
        name = f"{name}-{_digest(varied)[:6]}"
    return name


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
