"""The kinds of tasks, and the one place where a task is made of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter

from ..base_model import BaseModel
from .image_classification import ImageClassification, ImageClassificationConfig
from .task import Task
from .text_classification import TextClassification, TextClassificationConfig

DEFAULT_KIND = "image_classification"


def _kind(values: Any) -> Any:
    """The kind that a `task` section names; images are the default."""
    if isinstance(values, Mapping):
        return values.get("kind", DEFAULT_KIND)
    return getattr(values, "kind", DEFAULT_KIND)


TaskConfig = Annotated[
    Annotated[ImageClassificationConfig, Tag("image_classification")]
    | Annotated[TextClassificationConfig, Tag("text_classification")],
    Discriminator(_kind),
]
"""The recipe's `task` section: one of the kinds, by its key `kind`."""

TASKS = {ImageClassificationConfig: ImageClassification, TextClassificationConfig: TextClassification}
TASK_KINDS = [config.model_fields["kind"].default for config in TASKS]


def load_task(
    config: ImageClassificationConfig | TextClassificationConfig | Mapping[str, Any],
    base_model: BaseModel | None = None,
) -> Task:
    """The task of a configuration.

    Args:
        config (`TaskConfig` or `Mapping`): A validated `task` section, or one as JSON.
        base_model ([`BaseModel`], *optional*): What the inputs are for; decides what the configuration leaves `null`.

    Raises:
        ValueError: the configuration is invalid, or as the task of its kind.
    """
    config = TypeAdapter(TaskConfig).validate_python(config)
    return TASKS[type(config)](config, base_model)
