"""The kinds of tasks, and the one place where a task is made of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter

from ..base_model import BaseModel
from ..sections import OneOf, by_kind
from .image_classification import ImageClassification, ImageClassificationConfig
from .splits import SplitConfig
from .task import Task
from .text_classification import TextClassification, TextClassificationConfig

TASKS: dict[type[SplitConfig], type[Task]] = {
    ImageClassificationConfig: ImageClassification,
    TextClassificationConfig: TextClassification,
}

TaskConfig = Annotated[SplitConfig, OneOf(by_kind(*TASKS), "image_classification")]
"""The recipe's `task` section: one of the kinds, by its key `kind`."""


def load_task(config: SplitConfig | Mapping[str, Any], base_model: BaseModel | None = None) -> Task:
    """The task of a `task` section, validated or as JSON; the base model decides what it leaves `null`.

    Raises:
        ValueError: the configuration is invalid, or as the task of its kind.
    """
    config = TypeAdapter(TaskConfig).validate_python(config)
    return TASKS[type(config)](config, base_model)
