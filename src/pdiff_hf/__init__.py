"""Neural network diffusion for the Hugging Face ecosystem."""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
    from .data.folder import read_layout
    from .data.importing.importer import import_checkpoints
    from .data.record import ParameterRecorder, ParameterRecorderCallback
    from .data.writer import save_parameter_dataset
    from .layout import ParameterLayout
    from .models.autoencoder_identity import AutoencoderIdentity
    from .models.autoencoder_pca import AutoencoderPCA
    from .models.autoencoder_pdiff import AutoencoderPDiff
    from .models.unet_1d import make_unet_1d
    from .pipelines.network_folder import load_generated
    from .pipelines.pipeline_pdiff import PDiffPipeline, PDiffPipelineOutput

# Imported on first use: `pdiff --help` need not wait for torch.
_MODULES = {
    "AutoencoderIdentity": "models.autoencoder_identity",
    "AutoencoderPCA": "models.autoencoder_pca",
    "AutoencoderPDiff": "models.autoencoder_pdiff",
    "BaseModel": "base_model",
    "PDiffPipeline": "pipelines.pipeline_pdiff",
    "PDiffPipelineOutput": "pipelines.pipeline_pdiff",
    "ParameterDataset": "data.dataset",
    "ParameterLayout": "layout",
    "ParameterRecorder": "data.record",
    "ParameterRecorderCallback": "data.record",
    "import_checkpoints": "data.importing.importer",
    "load_base_model": "data.dataset",
    "load_generated": "pipelines.network_folder",
    "load_parameter_dataset": "data.dataset",
    "make_unet_1d": "models.unet_1d",
    "read_layout": "data.folder",
    "save_parameter_dataset": "data.writer",
}

__all__ = [
    "AutoencoderIdentity",
    "AutoencoderPCA",
    "AutoencoderPDiff",
    "BaseModel",
    "PDiffPipeline",
    "PDiffPipelineOutput",
    "ParameterDataset",
    "ParameterLayout",
    "ParameterRecorder",
    "ParameterRecorderCallback",
    "__version__",
    "import_checkpoints",
    "load_base_model",
    "load_generated",
    "load_parameter_dataset",
    "make_unet_1d",
    "read_layout",
    "save_parameter_dataset",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
