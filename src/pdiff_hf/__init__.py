"""Neural network diffusion for the Hugging Face ecosystem."""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .data import (
        ParameterRecorder,
        ParameterRecorderCallback,
        load_base_model,
        load_parameter_dataset,
        save_parameter_dataset,
    )
    from .data.import_ import import_checkpoints
    from .layout import ParameterLayout
    from .models import AutoencoderIdentity, AutoencoderPCA, AutoencoderPDiff, make_unet_1d
    from .pipelines import PDiffPipeline, PDiffPipelineOutput

# Imported on first use: `pdiff --help` need not wait for torch.
_MODULES = {
    "AutoencoderIdentity": "models",
    "AutoencoderPCA": "models",
    "AutoencoderPDiff": "models",
    "BaseModel": "base_model",
    "PDiffPipeline": "pipelines",
    "PDiffPipelineOutput": "pipelines",
    "ParameterLayout": "layout",
    "ParameterRecorder": "data",
    "ParameterRecorderCallback": "data",
    "import_checkpoints": "data.import_",
    "load_base_model": "data",
    "load_parameter_dataset": "data",
    "make_unet_1d": "models",
    "save_parameter_dataset": "data",
}

__all__ = [
    "AutoencoderIdentity",
    "AutoencoderPCA",
    "AutoencoderPDiff",
    "BaseModel",
    "PDiffPipeline",
    "PDiffPipelineOutput",
    "ParameterLayout",
    "ParameterRecorder",
    "ParameterRecorderCallback",
    "__version__",
    "import_checkpoints",
    "load_base_model",
    "load_parameter_dataset",
    "make_unet_1d",
    "save_parameter_dataset",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
