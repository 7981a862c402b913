"""The doctor that runs before training: what is in a parameter dataset, and what can be learned from it."""

from .report import inspect_dataset
from .tables import make_tables

__all__ = ["inspect_dataset", "make_tables"]
