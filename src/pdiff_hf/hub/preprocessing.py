"""What a network on the Hub says of its images: how the task prepared them, and the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor, BitImageProcessor

# What a task has to say of its images.
KEYS = ("image_size", "in_chans", "mean", "std", "interpolation", "crop_pct")


def timm_preprocessing(task: Mapping | None) -> dict[str, Any]:
    """The `pretrained_cfg` entries that `timm.data.resolve_data_config` reads, of a task's description.

    Args:
        task (`Mapping`, *optional*): `ImageClassification.describe()`; nothing is known of another task's inputs.
    """
    if not _is_of_images(task):
        return {}
    size = task["image_size"]
    kept = {key: task[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    return {"input_size": (task["in_chans"], size, size), **kept, "crop_mode": "center"}


def make_image_processor(task: Mapping | None) -> BaseImageProcessor | None:
    """The transformers image processor that does what the task did: resize, centre crop, scale, normalise.

    Args:
        task (`Mapping`, *optional*): `ImageClassification.describe()`; `None` for any other.
    """
    if not _is_of_images(task):
        return None
    size = task["image_size"]
    return BitImageProcessor(
        # As timm rounds.
        size={"shortest_edge": int(size / task["crop_pct"])},
        crop_size={"height": size, "width": size},
        resample=Image.Resampling[task["interpolation"].upper()],
        image_mean=list(task["mean"]),
        image_std=list(task["std"]),
        do_convert_rgb=task["in_chans"] == 3,
    )


def class_names(task: Mapping | None, num_classes: int) -> list[str] | None:
    """Names of the task's classes, if they are as many as the network's."""
    names = (task or {}).get("class_names") or []
    return list(names) if len(names) == num_classes else None


def _is_of_images(task: Mapping | None) -> bool:
    return task is not None and all(task.get(key) is not None for key in KEYS)
