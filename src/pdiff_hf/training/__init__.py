from .autoencoder import train_autoencoder
from .config import AutoencoderConfig, DiffusionConfig
from .diffusion import train_diffusion
from .gate import PoorReconstructionError

__all__ = ["AutoencoderConfig", "DiffusionConfig", "PoorReconstructionError", "train_autoencoder", "train_diffusion"]
