"""The tensors of one adapter: read, compared with what its configuration builds, and brought into a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ....adapters.config import AdapterConfig
from ....adapters.folder import file_name
from ....adapters.network import AdapterTensors
from ....files import errors_of
from ....hub.snapshot import some_of
from ..placeholder import Placeholder
from ..state_dict import read_values

PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KOHYA = re.compile(r"^lora_(te\d*|unet|transformer)_|\.lora_(down|up)\.|\.alpha$")
NAMED = re.compile(
    r"\.(?:lora_(?:embedding_)?[AB]|lora_magnitude_vector|ia3_l|vera_lambda_[bd])\.([^.]+)(?:\.weight|\.bias)?$"
)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """What a file of an adapter holds, by its names; nothing in it is run.

    Raises:
        ValueError: it is damaged, or holds something else than tensors.
    """
    if file.suffix == ".safetensors":
        with errors_of(f"{file.name} is no complete safetensors file", SafetensorError):
            return load_file(file)
    values = read_values([file], file.name)
    if not isinstance(values, Mapping) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        objects = values.values() if isinstance(values, Mapping) else [values]
        other = next((value for value in objects if not isinstance(value, torch.Tensor)), None)
        what = f"a {type(other).__name__}"
        if isinstance(other, Placeholder):
            what = f"an object of {other.full_name}, whose code would run"
        raise ValueError(f"{file.name}: expected tensors by their names, found {what}; nothing of it was run.")
    return dict(values)


def plain_names(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without that of peft's default adapter, which some versions of transformers write; peft finds them too."""
    if not any(".default" in name for name in values):
        return values
    return {file_name(name): tensor for name, tensor in values.items()}


def fitted(
    values: dict[str, torch.Tensor], config: AdapterConfig, expected: AdapterTensors
) -> dict[str, torch.Tensor]:
    """The tensors of a file by the network's names: all that its configuration builds, and no other.

    Raises:
        ValueError: a tensor is missing or none of the configuration's, has another shape, or no finite numbers.
    """
    names = expected.names
    if values.keys() != names.keys():
        raise _wrong_names(values, names)
    found = {}
    for name, own in names.items():
        tensor = found[own] = values[name]
        if tuple(tensor.shape) != expected.shapes[own]:
            raise _wrong_shape(name, own, tensor, config, expected)
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"tensor {name!r}: expected floating-point numbers, found {kind}; save it unquantised.")
    return found


def _wrong_names(values: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> ValueError:
    unexpected = [name for name in values if name not in names]
    missing = [name for name in names if name not in values]
    if any(KOHYA.search(name) for name in unexpected):
        return ValueError(
            f"tensor {unexpected[0]!r:.120}: kohya's format, whose names cannot be undone; convert it with diffusers "
            "(load_lora_weights, then save_lora_adapter), or take the adapter that peft saved."
        )
    if unexpected and (match := NAMED.search(unexpected[0])) and match[1] not in ("weight", "bias"):
        return ValueError(
            f"tensor {unexpected[0]!r:.160} carries the name of an adapter, {match[1]!r:.40}, with which peft loads "
            "nothing; take it out of the names, or save it with PeftModel.save_pretrained."
        )
    for name in unexpected[:1]:
        tail = name.removeprefix(PREFIX).split(".")
        for cut in range(len(tail)):
            rest = ".".join(tail[cut:])
            fits = [known for known in names if known.endswith(f".{rest}") or known == f"{PREFIX}{rest}"]
            if fits and not name.startswith(PREFIX):
                own = name.removesuffix(rest)
                return ValueError(
                    f"tensor {name!r:.160}: names begin with {own!r:.60}, where peft has {PREFIX!r} and loads nothing "
                    "of others; rename them."
                )
    if unexpected:
        among = f"; the config's are {some_of(names)}"
        return ValueError(f"tensor {unexpected[0]!r:.160} is of no layer that the config targets{among}.")
    return ValueError(
        f"tensor {missing[0]!r:.160} is missing, and {len(missing) - 1} more, of {len(names)} that the config says; "
        "the adapter was not saved whole."
    )


def _wrong_shape(
    name: str, own: str, tensor: torch.Tensor, config: AdapterConfig, expected: AdapterTensors
) -> ValueError:
    shape, found = expected.shapes[own], tuple(tensor.shape)
    what = f"tensor {name!r:.160}: expected shape {shape}, found {found}"
    if 0 in found:
        return ValueError(f"{what}: saved without gathering, as ZeRO-3 leaves it; gather before saving.")
    factor = expected.factors.get(own)
    if factor is not None and factor.role in "AB":
        axis = 0 if factor.role == "A" else 1
        if found[axis] != shape[axis] and len(found) == len(shape):
            return ValueError(f"{what}: the config says rank {config.values['r']}, the tensor has another.")
    return ValueError(f"{what}: the adapter was trained on another base than --base, or with other layers.")


def check_finite(values: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` naming the first tensor with a NaN or infinity."""
    for name, tensor in values.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name!r:.160} has a NaN or infinite value; leave this adapter out.")
