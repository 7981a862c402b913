"""Tasks: image and text data, base training, and the collection of checkpoints."""

from .base_training import BaseTrainingConfig, train_base_model, train_base_model_once
from .collect import check_collection, collect_checkpoints, partial_folder
from .collect_config import CollectConfig
from .image_classification import ImageClassification, ImageClassificationConfig
from .kinds import TaskConfig, load_task
from .task import Task
from .text_classification import TextClassification, TextClassificationConfig

__all__ = [
    "BaseTrainingConfig",
    "CollectConfig",
    "ImageClassification",
    "ImageClassificationConfig",
    "Task",
    "TaskConfig",
    "TextClassification",
    "TextClassificationConfig",
    "check_collection",
    "collect_checkpoints",
    "load_task",
    "partial_folder",
    "train_base_model",
    "train_base_model_once",
]
