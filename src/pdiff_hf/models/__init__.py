from pathlib import Path

from ..files import read_json
from .autoencoder_identity import AutoencoderIdentity
from .autoencoder_pca import AutoencoderPCA
from .autoencoder_pdiff import AutoencoderPDiff
from .unet_1d import make_unet_1d

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


__all__ = [
    "AutoencoderIdentity",
    "AutoencoderPCA",
    "AutoencoderPDiff",
    "ParameterAutoencoder",
    "load_autoencoder",
    "make_unet_1d",
]
