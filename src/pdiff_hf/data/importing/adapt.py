"""Arguments of a builder that a checkpoint's shapes tell, and the network of the same family that has them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import timm
import torch
from torch import nn

from ...base_model import BaseModel
from ...wrapped import own_state

# The argument that says how many classes there are, where a library has one for all of its networks.
CLASSES = {"timm": "num_classes", "torchvision": "num_classes", "transformers": "num_labels"}

# A state dict from before torch 0.4.1 has none, and torch's strict loading takes it.
BATCH_COUNTER = "num_batches_tracked"

# Networks of a family that are looked through for one that fits, and the seconds for it.
MAX_NEAREST, MAX_SECONDS = 100, 5.0

Shapes = Mapping[str, tuple[int, ...]]


def told_arguments(base_model: BaseModel, model: nn.Module, found: Shapes, asked: bool = True) -> dict[str, int]:
    """Arguments with which the network may have the shapes of a checkpoint.

    Args:
        base_model ([`BaseModel`]): How `model` was built.
        model (`nn.Module`): The network.
        found (`Mapping[str, tuple[int, ...]]`): Shapes in the checkpoint, by the names of the network.
        asked (`bool`, *optional*, defaults to `True`): Whether only what nobody gave; else the given ones, too.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in own_state(model).items()}
    others = {name: (shape, tuple(found[name])) for name, shape in expected.items() if name in found}
    others = {name: shapes for name, shapes in others.items() if shapes[0] != shapes[1]}
    told: dict[str, int] = {}
    is_given = partial(_is_given, base_model) if asked else lambda name: False
    if (name := CLASSES.get(base_model.library)) and not is_given(name):
        told |= _same(name, others, 0, _num_classes(base_model, model))
    if base_model.library != "timm":
        return told
    if not is_given("in_chans"):
        told |= _same("in_chans", {n: s for n, s in others.items() if len(s[0]) == 4}, 1, 3)
    if not is_given("img_size"):
        told |= _image_size(model, others.get("pos_embed"))
    heads = model.pretrained_cfg.get("classifier") if hasattr(model, "pretrained_cfg") else None
    heads = (heads,) if isinstance(heads, str) else heads or ()
    missing = expected.keys() - found.keys()
    if (
        not is_given("num_classes")
        and missing
        and all(name.startswith(tuple(f"{head}." for head in heads)) for name in missing)
    ):
        told["num_classes"] = 0
    return told


def with_arguments(base_model: BaseModel, told: Mapping[str, int]) -> BaseModel:
    """The reference with further arguments of its builder."""
    if base_model.library != "transformers":
        return replace(base_model, kwargs={**base_model.kwargs, **told})
    from transformers import AutoConfig

    config = AutoConfig.for_model(**base_model.kwargs["config"])
    for name, value in told.items():
        setattr(config, name, value)
    return replace(BaseModel.transformers(config, base_model.name), trusted_imports=base_model.trusted_imports)


def nearest(base_model: BaseModel, found: Shapes) -> str | None:
    """A network of timm, of the same file as the base model's, whose tensors have these names and shapes.

    The number of classes may be another.
    """
    if base_model.library != "timm":
        return None
    begin = time.monotonic()
    family = timm.models._registry._model_to_module.get(base_model.name)
    for name in timm.list_models(module=family or "")[:MAX_NEAREST]:
        if time.monotonic() - begin > MAX_SECONDS:
            return None
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # Not every network can be built without memory.
            continue
        own = {name: tuple(tensor.shape) for name, tensor in own_state(model).items()}
        is_head = partial(_is_head, num_classes=model.num_classes)
        if _without_counters(own) == _without_counters(found) and all(
            own[n] == found[n] or is_head(own[n], found[n]) for n in _without_counters(own)
        ):
            return name
    return None


def _without_counters(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.rpartition(".")[2] != BATCH_COUNTER}


def _is_head(expected: tuple[int, ...], found: tuple[int, ...], num_classes: int) -> bool:
    return bool(found) and expected[:1] == (num_classes,) and expected[1:] == found[1:]


def _is_given(base_model: BaseModel, name: str) -> bool:
    # A config of transformers has all of its values; two labels are what it takes where nobody said.
    if base_model.library == "transformers":
        return len(base_model.kwargs["config"].get("id2label") or (0, 1)) != 2
    return name in base_model.kwargs


def _num_classes(base_model: BaseModel, model: nn.Module) -> int | None:
    if base_model.library == "timm":
        return model.num_classes
    if base_model.library == "torchvision":
        return 1000
    return model.config.num_labels


def _same(name: str, others: Mapping[str, tuple], axis: int, default: int | None) -> dict[str, int]:
    """The size of an axis that is `default` in the network and one other number in the checkpoint, all else alike."""
    sizes = {
        found[axis]
        for expected, found in others.values()
        if len(expected) == len(found) > axis
        and expected[axis] == default
        and (*expected[:axis], *expected[axis + 1 :]) == (*found[:axis], *found[axis + 1 :])
    }
    return {name: sizes.pop()} if len(sizes) == 1 else {}


def _image_size(model: nn.Module, shapes: tuple | None) -> dict[str, int]:
    """Pixels of a side, where position embeddings `(1, tokens, width)` are of another number of square patches."""
    grid, patch = (getattr(getattr(model, "patch_embed", None), name, None) for name in ("grid_size", "patch_size"))
    if shapes is None or not grid or not patch or len(shapes[1]) != 3:
        return {}
    side = math.isqrt(max(0, shapes[1][1] - (shapes[0][1] - grid[0] * grid[1])))
    is_square = side > 0 and side * side == shapes[1][1] - (shapes[0][1] - grid[0] * grid[1])
    return {"img_size": side * patch[0]} if is_square else {}
