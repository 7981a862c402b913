"""The kinds of tasks, and the one place where a task is made of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter

from ..sections import OneOf, by_kind, load_class
from .config import ImageClassificationConfig, SplitConfig, TextClassificationConfig

if TYPE_CHECKING:
    from ..base_model import BaseModel
    from .task import Task

# Their classes are imported when one is made: a recipe is validated without the libraries of images and texts.
TASKS: dict[type[SplitConfig], str] = {
    ImageClassificationConfig: "pdiff_hf.tasks.image_classification:ImageClassification",
    TextClassificationConfig: "pdiff_hf.tasks.text_classification:TextClassification",
}

TaskConfig = Annotated[SplitConfig, OneOf(by_kind(*TASKS), "image_classification")]
"""The recipe's `task` section: one of the kinds, by its key `kind`."""


def load_task(config: SplitConfig | Mapping[str, Any], base_model: BaseModel | None = None) -> Task:
    """The task of a `task` section, validated or as JSON; the base model decides what it leaves `null`.

    Raises:
        ValueError: the configuration is invalid, or as the task of its kind.
    """
    config = TypeAdapter(TaskConfig).validate_python(config)
    return load_class(TASKS[type(config)])(config, base_model)
