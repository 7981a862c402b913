"""The tensors of one adapter: read, compared with what its configuration builds, and brought into a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ....adapters.folder import file_name
from ....adapters.network import AdapterTensors
from ....files import errors_of
from ....hub.snapshot import some_of
from ..placeholder import Placeholder
from ..state_dict import read_values


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


def fitted(values: dict[str, torch.Tensor], expected: AdapterTensors) -> dict[str, torch.Tensor]:
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
            raise ValueError(
                f"tensor {name!r:.160}: expected shape {expected.shapes[own]}, found {tuple(tensor.shape)}: the "
                "adapter was trained on another base than --base, or with other ranks than its config says."
            )
    return found


def _wrong_names(values: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> ValueError:
    for name in values:
        if name not in names:
            among = f"the config's are {some_of(names)}"
            return ValueError(f"tensor {name!r:.160} is of no layer that the config targets; {among}.")
    missing = [name for name in names if name not in values]
    return ValueError(
        f"tensor {missing[0]!r:.160} is missing, one of {len(missing)} of {len(names)} that the config says; the "
        "adapter was not saved whole."
    )


def check_finite(values: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` naming the first tensor with a NaN or infinity."""
    for name, tensor in values.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name!r:.160} has a NaN or infinite value; leave this adapter out.")
