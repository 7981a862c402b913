"""Table of the autoencoders: by the kind in a recipe, and by the class in a file."""

from __future__ import annotations

from pathlib import Path

from ..files import read_json
from .autoencoder_identity import AutoencoderIdentity
from .autoencoder_pca import AutoencoderPCA
from .autoencoder_pdiff import AutoencoderPDiff
from .config import AutoencoderConfig

# From this size on, a basis is stored in bfloat16 unless the recipe says otherwise.
MAX_FLOAT32_BASIS_BYTES = 2**30

ParameterAutoencoder = AutoencoderPDiff | AutoencoderPCA | AutoencoderIdentity

AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderIdentity, AutoencoderPCA, AutoencoderPDiff)}


def load_autoencoder(folder: str | Path) -> ParameterAutoencoder:
    """Load whichever autoencoder a local folder holds, in eval mode.

    Raises:
        ValueError: the folder holds no autoencoder of this package, or its weights are damaged.
    """
    name = read_json(Path(folder) / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise ValueError(f"{folder}: expected one of {sorted(AUTOENCODERS)}, found {name!r}.")
    try:
        return AUTOENCODERS[name].from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error


def build_autoencoder(config: AutoencoderConfig, layout: dict) -> ParameterAutoencoder:
    """An untrained autoencoder for `layout` (`ParameterLayout.to_dict()`)."""
    options = {"layout": layout, "latent_channels": config.latent_channels}
    if config.normalization is not None:
        options["normalization"] = config.normalization
    if config.kind == "none":
        return AutoencoderIdentity(**options)
    options["latent_length"] = config.latent_length
    if config.kind == "pca":
        size = 4 * config.latent_channels * config.latent_length * layout["num_parameters"]
        automatic = "bfloat16" if size > MAX_FLOAT32_BASIS_BYTES else "float32"
        return AutoencoderPCA(**options, basis_dtype=automatic if config.basis_dtype == "auto" else config.basis_dtype)
    noise = {"input_noise": config.input_noise, "latent_noise": config.latent_noise}
    return AutoencoderPDiff.from_preset(config.preset, **options, **noise)
