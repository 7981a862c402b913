"""Neural network diffusion for the Hugging Face ecosystem.

Its names are those below, and the classes of the components of pipelines, [`own_classes`] of `models.auto`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

# ruff: noqa: F401 (for type checkers; `__all__` is made when it is asked for)
if TYPE_CHECKING:
    from .base_model import BaseModel
    from .conditions import ConditionSpec
    from .data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
    from .data.folder import read_layout
    from .data.importing.importer import import_checkpoints
    from .data.record import ParameterRecorder, ParameterRecorderCallback
    from .data.writer import save_parameter_dataset
    from .layout import ParameterLayout
    from .models.unet_1d import make_unet_1d
    from .pipelines.network_folder import load_generated
    from .pipelines.pipeline_pdiff import PDiffPipeline, PDiffPipelineOutput
    from .text_encoder import TextEncoder

# Imported on first use: `pdiff --help` need not wait for torch.
_MODULES = {
    "BaseModel": "base_model",
    "ConditionSpec": "conditions",
    "PDiffPipeline": "pipelines.pipeline_pdiff",
    "PDiffPipelineOutput": "pipelines.pipeline_pdiff",
    "ParameterDataset": "data.dataset",
    "ParameterLayout": "layout",
    "ParameterRecorder": "data.record",
    "ParameterRecorderCallback": "data.record",
    "TextEncoder": "text_encoder",
    "import_checkpoints": "data.importing.importer",
    "load_base_model": "data.dataset",
    "load_generated": "pipelines.network_folder",
    "load_parameter_dataset": "data.dataset",
    "make_unet_1d": "models.unet_1d",
    "read_layout": "data.folder",
    "save_parameter_dataset": "data.writer",
}


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    # Names of modules are small, and `import` asks for them here as well.
    if name == "__all__" or name[:1].isupper():
        classes = import_module(".models.auto", __name__).own_classes()
        if name == "__all__":
            return sorted([*_MODULES, *classes, "__version__"])
        if name in classes:
            return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
