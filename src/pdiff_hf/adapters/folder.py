"""Adapters as the folders that peft loads: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import errors_of, write_json
from ..host_copy import host_copies
from ..layout import ParameterLayout
from ..os_errors import writing
from ..peft_model import ADAPTER
from .gauge import lora_pairs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What peft adds to the names of the layers: the adapter's own name stands behind it, but not in files.
OWN = re.compile(rf"(\.(?:lora_\w+|ia3_l|vera_\w+))\.{ADAPTER}(?=\.|$)")
IN_FILES = re.compile(r"(\.(?:lora_\w+|ia3_l|vera_\w+))(?=\.|$)")
CONSTANTS = re.compile(rf"\.(vera_[AB]|lora_(?:embedding_)?A)\.{ADAPTER}(?=\.|$)")
# In the network, every layer has it; in the file, it is there once.
SHARED = re.compile(rf"^base_model\..*\.(vera_[AB]\.{ADAPTER})$")
MAGNITUDE = ".lora_magnitude_vector"
HEAD = f".modules_to_save.{ADAPTER}."


def file_name(name: str) -> str:
    """What the file of an adapter calls a tensor of the network."""
    name = name.removesuffix(".weight") if MAGNITUDE in name else SHARED.sub(r"base_model.\1", name)
    return OWN.sub(r"\1", name).replace(HEAD, ".")


def network_name(name: str, config: Mapping[str, Any]) -> str:
    """What the network calls a tensor of an adapter's file."""
    if IN_FILES.search(name):
        # Those of DoRA are parameters in files, and modules with a weight in the network.
        name = f"{name}.weight" if name.endswith(MAGNITUDE) else name
        return IN_FILES.sub(rf"\1.{ADAPTER}", name)
    module, _, parameter = name.rpartition(".")
    for head in config.get("modules_to_save") or ():
        # The parts of a head that is a module of several are behind its name.
        found = re.fullmatch(rf"((?:.*\.)?{re.escape(head)})((?:\.\w+)*)", module)
        if found is not None:
            return f"{found[1]}{HEAD}{found[2][1:]}{'.' if found[2] else ''}{parameter}"
    return name


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of the network is one of its adapter's, by its name."""
    return OWN.search(name) is not None or HEAD in name


def is_constant(name: str) -> bool:
    """Whether a tensor of an adapter is of those that all adapters of a collection may share."""
    return CONSTANTS.search(name) is not None


def write_adapter(
    folder: str | Path,
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `PeftModel.from_pretrained(base, folder)` loads; what is in the folder stays beside it.

    Args:
        folder (`str` or `Path`): Where to; made when it does not exist.
        config (`Mapping`): That of the base model reference.
        state (`Mapping[str, torch.Tensor]`): The adapter's tensors by the network's names.
        constants (`Mapping[str, torch.Tensor]`, *optional*): Those that all adapters share.
    """
    folder = Path(folder)
    tensors = host_copies({file_name(name): value for name, value in {**(constants or {}), **state}.items()})
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # Frozen once it is loaded, as peft saves it.
        write_json(folder / CONFIG, {**config, "inference_mode": True})


def read_adapter(file: Path, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter that [`write_adapter`] wrote, by the network's names."""
    with errors_of(file, SafetensorError):
        return {network_name(name, config): tensor for name, tensor in load_file(file).items()}


def ways_to_load(config: Mapping[str, Any], layout: ParameterLayout) -> dict[str, bool]:
    """Which functions of peft take such an adapter."""
    heads = any(HEAD in name for name in layout.names)
    names: Iterable[str] = layout.names
    plain = config["peft_type"] == "LORA" and not config.get("use_dora") and config.get("bias", "none") == "none"
    plain = plain and not heads and not any(".lora_embedding_" in name or name.endswith(".bias") for name in names)
    grouped = any(pair.groups > 1 for pair in lora_pairs(layout))
    return {
        "PeftModel.from_pretrained": True,
        "PeftModel.load_adapter": True,
        "set_peft_model_state_dict": True,
        "merge_and_unload": not grouped,
        "hotswap_adapter": plain,
        # transformers' own, which leaves magnitudes of DoRA out and knows neither VeRA nor IA3's heads.
        "model.load_adapter": config["peft_type"] == "LORA" and not config.get("use_dora") and not heads,
    }
