"""Tasks: image data, base training, and the collection of checkpoints."""

from .base_training import BaseTrainingConfig, train_base_model
from .collect import CollectConfig, check_collection, collect_checkpoints
from .image_classification import ImageClassification, TaskConfig

__all__ = [
    "BaseTrainingConfig",
    "CollectConfig",
    "ImageClassification",
    "TaskConfig",
    "check_collection",
    "collect_checkpoints",
    "train_base_model",
]
