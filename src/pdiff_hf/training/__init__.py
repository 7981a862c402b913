from .autoencoder import train_autoencoder
from .config import AutoencoderConfig, DiffusionConfig
from .diffusion import train_diffusion
from .gate import PoorReconstructionError
from .history import NonFiniteLossError
from .interrupts import TrainingInterrupted

__all__ = [
    "AutoencoderConfig",
    "DiffusionConfig",
    "NonFiniteLossError",
    "PoorReconstructionError",
    "TrainingInterrupted",
    "train_autoencoder",
    "train_diffusion",
]
