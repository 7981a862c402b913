"""Composition of a recipe out of small YAML files: a network, a selection, a data set, and what is laid over them.

A recipe names its parts, `compose: [resnet18, last_norms, cifar10]`, or is itself named after them,
`resnet18-last_norms-cifar10`. Sections are merged key by key; of two values the later one stands. The order is

1. the parts: data set, network, selection, then the user's own files (`*.yaml`), however they are listed;
2. the parts' sections `small_images` (up to 64 pixels) or `photographs` (above), then their sections `pretrained` when
   the network starts from pretrained weights;
3. the recipe's own keys;
4. the preset, then the sections of its name of the parts and of the recipe;
5. the profile, then the sections of its name of the parts and of the recipe;
6. `--set`.

At last every value `${fact}` becomes the fact of this name (see `FACTS`). A key whose fact nobody gives is left out:
the builder's default holds.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..strict_yaml import parse_yaml, read_mapping
from ..wording import argument
from .recipe_parts import AXES, FOLDER, OVERLAYS, find_part, named_recipes, part_names

MERGE_ORDER = ("data set", "network", "selection", "own")
SMALL_IMAGES = 64
VARIANTS = ("small_images", "photographs", "pretrained")

# What parts tell each other at their top level.
FACTS = {
    "num_classes": "classes of the data set",
    "image_size": "pixels; `task.image_size` when that is set",
    "in_chans": "channels of an image; `task.in_chans` when that is set",
    "num_features": "values of an image, in_chans · image_size²; computed",
    "vocab_size": "tokens of the tokenizer; `task.vocab_size` when that is set",
    "few": "128 or one for each class, what the smoke profile takes of a split; computed",
    "first_conv": "globs of the network's first convolution",
    "last_conv": "globs of the network's last convolution",
    "bn10_13": "globs of the BatchNorm layers 10 to 13 of ResNet-18",
    "bn14_15": "globs of the BatchNorm layers 14 and 15 of ResNet-18",
    "bn16_17": "globs of the BatchNorm layers 16 and 17 of ResNet-18",
}
# What else stands at the top level of a part or an overlay, beside a recipe's sections.
RULES = {
    "compose": "names of parts, or the user's own YAML files of the same form",
    "min_image_size": "of a network, pixels: smaller images are enlarged",
    "max_image_size": "of a profile, pixels: larger images are made smaller",
    "selections": "of a network: the only selections that fit it",
    "task_kind": "of a network: the kind of task it fits; image_classification when left out",
    "num_parameters": "of a network for CIFAR-10, or SST-2; shown in lists",
    "replace": "of a preset: sections that start from defaults",
}
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def list_parts() -> dict[str, list[dict[str, Any]]]:
    """What is shipped, by kind: `recipes`, and the folders of `AXES` and `OVERLAYS`.

    Of every file its `name` and `description`, the first line; of a network also `num_parameters`, `task_kind` and the
    `selections` that fit it.
    """
    listed = {}
    for kind in ("recipes", *AXES.values(), *OVERLAYS.values()):
        files = sorted((FOLDER if kind == "recipes" else FOLDER / kind).glob("*.yaml"))
        firsts = [file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files]
        listed[kind] = [{"name": file.stem, "description": first} for file, first in zip(files, firsts, strict=True)]
    for network in listed["networks"]:
        values = read_mapping(find_part(network["name"], "network"))
        network["num_parameters"] = values["num_parameters"]
        network["task_kind"] = values.get("task_kind", "image_classification")
        network["selections"] = [name for name in part_names("selection") if _fits(values, name)]
    return listed


def _fits(network: Mapping[str, Any], selection: str) -> bool:
    """Whether a network's values have what a selection needs, however large the images."""
    values = copy.deepcopy(dict(network))
    merge_into(values, read_mapping(find_part(selection, "selection")))
    try:
        _check_selection(values, facts_of(values), "", selection)
    except ValueError:
        return False
    return True


def read_recipe(
    source: str | Path, overrides: Sequence[str] = (), preset: str | None = None, profile: str | None = None
) -> dict[str, Any]:
    """The sections of a recipe, composed and with every `${fact}` in its place, but not validated.

    Args:
        source (`str` or `Path`): A named recipe, `<network>-<selection>-<data>`, or a YAML file.
        overrides (`Sequence[str]`, *optional*): `"section.key=value"` with a YAML value each.
        preset (`str`, *optional*): `"paper"` or `"fast"`: hyper-parameters that replace the recipe's.
        profile (`str`, *optional*): `"cpu-smoke"`: so little of everything that the recipe runs in a minute.

    Raises:
        ValueError: no such recipe, part, preset or profile (with the nearest valid one), parts that do not fit each
            other, or a file that is not YAML.
    """
    own, parts = _read_source(source)
    overlays = read_overlays(preset, profile)
    # Which sections count depends on the images' size and on pretrained weights, and layers may set these.
    values, variants = _merge(parts, own, overlays, overrides), []
    if isinstance(size := facts_of(values)["image_size"], int):
        variants = ["small_images" if size <= SMALL_IMAGES else "photographs"]
        values = _merge(parts, own, overlays, overrides, variants)
    base_model = _section(values, "base_model")
    if base_model.get("pretrained") or _section(base_model, "kwargs").get("pretrained"):
        values = _merge(parts, own, overlays, overrides, [*variants, "pretrained"])
    facts = facts_of(values)
    _check_fit(values, facts, {axis: name for axis, name, _ in parts})
    values = {key: value for key, value in values.items() if key not in FACTS and key not in RULES}
    return resolve(values, facts)


def read_overlays(preset: str | None, profile: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Name and values of a preset and a profile, of those that are given."""
    given = (("preset", preset), ("profile", profile))
    return [(name, read_mapping(find_part(name, axis))) for axis, name in given if name is not None]


def read_written(source: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What of a recipe is the user's: the file, unless it is a shipped one, its own parts, and the overrides."""
    own, parts = _read_source(source)
    written: dict[str, Any] = {}
    for axis, _, part in parts:
        if axis == "own":
            merge_into(written, part)
    if str(source) not in named_recipes():
        merge_into(written, own)
    for override in overrides:
        apply_override(written, override)
    return written


def _read_source(source: str | Path) -> tuple[dict[str, Any], list[tuple[str, str, dict[str, Any]]]]:
    """A recipe's own keys, and `(axis, name, values)` of its parts in the order in which they are merged."""
    name, own = str(source), {}
    file = FOLDER / f"{name}.yaml" if name in named_recipes() else Path(source)
    if file.is_file():
        own = read_mapping(file)
        listed = own.get("compose", [])
        if not isinstance(listed, list) or not all(isinstance(part, str) for part in listed):
            raise ValueError(f"key 'compose': expected a list of parts' names, found {listed!r}.")
        listed = [(None, part) for part in listed]
    elif name.count("-") == len(AXES) - 1:
        listed = list(zip(AXES, name.split("-"), strict=True))
    else:
        near = difflib.get_close_matches(name, named_recipes(), 1, 0.5)
        raise ValueError(
            f"no recipe {name!r}{f' (the nearest is {near[0]!r})' if near else ''}: expected a YAML file, "
            f"<network>-<selection>-<data>, or one of {', '.join(named_recipes())}."
        )
    parts = []
    for axis, part in listed:
        if axis is None and part.endswith((".yaml", ".yml")):
            parts.append(("own", part, read_mapping(file.parent / part)))
            continue
        axis = axis or next((axis for axis in AXES if part in part_names(axis)), None)
        if axis is None:
            every = [name for axis in AXES for name in part_names(axis)]
            near = difflib.get_close_matches(part, every, 1, 0.0)
            raise ValueError(f"compose: no part {part!r}; the nearest is {near[0]!r}.")
        if any(axis == other for other, _, _ in parts):
            raise ValueError(f"compose: expected one {axis}, found {part!r} as a second one.")
        parts.append((axis, part, read_mapping(find_part(part, axis))))
    return own, sorted(parts, key=lambda part: MERGE_ORDER.index(part[0]))


def _merge(
    parts: Sequence[tuple[str, str, dict[str, Any]]],
    own: dict[str, Any],
    overlays: Sequence[tuple[str, dict[str, Any]]],
    overrides: Sequence[str],
    variants: Sequence[str] = (),
) -> dict[str, Any]:
    conditional = {*VARIANTS, *part_names("preset"), *part_names("profile")}
    merged: dict[str, Any] = {}
    for _, _, part in parts:
        merge_into(merged, {key: value for key, value in part.items() if key not in conditional})
    for variant in variants:
        for _, _, part in parts:
            merge_into(merged, part.get(variant, {}))
    merge_into(merged, {key: value for key, value in own.items() if key not in conditional})
    for name, overlay in overlays:
        for section in overlay.get("replace", []):
            merged.pop(section, None)
        merge_into(merged, overlay)
        for part in (*(part for _, _, part in parts), own):
            merge_into(merged, part.get(name, {}))
    task = _section(merged, "task")
    if isinstance(size := task.get("image_size"), int):
        size = min(size, merged.get("max_image_size", size))
        task["image_size"] = max(size, merged.get("min_image_size", size))
    for override in overrides:
        apply_override(merged, override)
    return merged


def merge_into(target: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Merge `other` into `target` key by key; where one of two values is not a section, that of `other` stands."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            merge_into(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one key by `"section.key=value"`; the value is YAML and replaces whatever was there.

    Raises `ValueError` when it is not of this form or not valid YAML, or for a value where a section should be.
    """
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"{argument('overrides')} {override!r}: expected section.key=value.")
    for index, key in enumerate(keys[:-1]):
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(
                f"{argument('overrides')} {override!r}: {'.'.join(keys[: index + 1])} is a value, not a section."
            )
    values[keys[-1]] = parse_yaml(text, f"{argument('overrides')} {override!r}: the value")


def facts_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every fact of `FACTS` by the merged values, `None` where nobody gives one."""
    task = _section(values, "task")
    facts = {name: values.get(name) for name in FACTS}
    for name in ("image_size", "in_chans", "vocab_size"):
        if isinstance(task.get(name), int):
            facts[name] = task[name]
    if isinstance(facts["image_size"], int):
        facts["num_features"] = (facts["in_chans"] or 3) * facts["image_size"] ** 2
    facts["few"] = max(128, facts["num_classes"] or 0)
    return facts


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section, empty when there is none; what is no section is left for the validation to find."""
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _check_fit(values: Mapping[str, Any], facts: Mapping[str, Any], names: Mapping[str, str]) -> None:
    network, selection, data = (names.get(axis, "the recipe") for axis in AXES)
    _check_selection(values, facts, network, selection)
    kind = _section(values, "task").get("kind", "image_classification")
    if "network" in names and (expected := values.get("task_kind", "image_classification")) != kind:
        raise ValueError(f"{network} is for {expected}, found {kind} by {data}; choose another network or data set.")
    if (values.get("min_image_size") or 0) > (facts["image_size"] or float("inf")):
        raise ValueError(
            f"{network} needs images of at least {values['min_image_size']} pixels, found {facts['image_size']} by "
            f"{data}; choose another network or data set, or raise task.image_size."
        )


def _check_selection(values: Mapping[str, Any], facts: Mapping[str, Any], network: str, selection: str) -> None:
    fitting = values.get("selections")
    if fitting is not None and selection in part_names("selection") and selection not in fitting:
        raise ValueError(f"selection {selection!r} does not fit {network}; expected one of {', '.join(fitting)}.")
    select = _section(values, "collect").get("select")
    match = _PLACEHOLDER.fullmatch(select) if isinstance(select, str) else None
    if match is not None and match[1] in FACTS and facts[match[1]] is None:
        raise ValueError(
            f"selection {select!r} of {selection} does not fit {network}, which names no {match[1]!r}; "
            "`pdiff recipes --json` lists the selections that fit."
        )


def resolve(value: Any, facts: Mapping[str, Any]) -> Any:
    """Puts facts in the place of `${fact}`; items and keys without a fact are left out."""
    if isinstance(value, dict):
        resolved = {key: resolve(item, facts) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not None or value[key] is None}
    if isinstance(value, list):
        resolved_items = [(item, resolve(item, facts)) for item in value]
        return [resolved for item, resolved in resolved_items if resolved is not None or item is None]
    match = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in FACTS:
        near = difflib.get_close_matches(match[1], FACTS, 1, 0.0)
        raise ValueError(f"expected a fact in {value!r}; the nearest is '${{{near[0]}}}', of {', '.join(FACTS)}.")
    return facts[match[1]]
