"""Tables of the autoencoders and the denoisers: kind → its section, which names and builds its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..files import read_json
from ..sections import OneOf, by_kind
from .config import AutoencoderConfig, DiffusionConfig
from .kinds import (
    AutoencoderFunctionalConfig,
    AutoencoderIdentityConfig,
    AutoencoderPCAConfig,
    AutoencoderPDiffConfig,
    UNet1DConditionConfig,
    UNet1DConfig,
)

if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin

    from ..base_model import BaseModel
    from .autoencoder_base import ParameterAutoencoderMixin

AUTOENCODERS: dict[str, type[AutoencoderConfig]] = by_kind(
    AutoencoderPDiffConfig,
    AutoencoderPCAConfig,
    AutoencoderIdentityConfig,
    AutoencoderFunctionalConfig,
)
DENOISERS: dict[str, type[DiffusionConfig]] = by_kind(UNet1DConditionConfig, UNet1DConfig)

# The sections of a recipe. Those of version 0.1 may name no kind.
AUTOENCODER = OneOf(AUTOENCODERS, "pdiff")
DENOISER = OneOf(DENOISERS, "unet_1d_condition", {"paper": "unet_1d"})
SECTIONS = {"autoencoder": AUTOENCODER, "diffusion": DENOISER}
AutoencoderSection = Annotated[AutoencoderConfig, AUTOENCODER]
DiffusionSection = Annotated[DiffusionConfig, DENOISER]


def own_classes() -> dict[str, type[ModelMixin]]:
    """The classes of the components of pipelines that are this package's, by name."""
    from .condition_encoder import ConditionEncoder

    classes = [section.model_class() for section in (*AUTOENCODERS.values(), *DENOISERS.values())]
    classes.append(ConditionEncoder)
    package = __name__.partition(".")[0]
    return {cls.__name__: cls for cls in classes if cls.__module__.partition(".")[0] == package}


def load_autoencoder(folder: str | Path, device: torch.device | str = "cpu") -> ParameterAutoencoderMixin:
    """Load whichever autoencoder a local folder holds, in eval mode; see [`connect_network`] for those that encode.

    Raises:
        ValueError: the folder holds no autoencoder of the table, or its weights are damaged.
    """
    return _load(folder, AUTOENCODERS).to(device)


def connect_network(autoencoder: ParameterAutoencoderMixin, base_model: BaseModel | None) -> None:
    """Give an autoencoder that needs it to encode the network of a base model, where there is one.

    Raises:
        ValueError: the network cannot be built, or is another one than the autoencoder's.
    """
    if autoencoder.needs_network and base_model is not None:
        autoencoder.connect(base_model.build())


def load_denoiser(folder: str | Path) -> ModelMixin:
    """Load whichever denoiser a local folder holds, in eval mode.

    Raises:
        ValueError: the folder holds no denoiser of the table, or its weights are damaged.
    """
    return _load(folder, DENOISERS)


def _load(folder: str | Path, table: Mapping[str, Any]) -> Any:
    classes = {cls.__name__: cls for cls in (section.model_class() for section in table.values())}
    name = read_json(Path(folder) / "config.json").get("_class_name")
    if name not in classes:
        raise ValueError(f"{folder}: expected one of {sorted(classes)}, found {name!r}.")
    try:
        return classes[name].from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error
