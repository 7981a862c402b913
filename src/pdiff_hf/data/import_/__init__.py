from .architecture import parse_base_model, read_base_model
from .importer import import_checkpoints

__all__ = ["import_checkpoints", "parse_base_model", "read_base_model"]
