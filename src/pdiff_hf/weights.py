"""All weights of a network, by its own names: taken out to be written, and put back into one that was built anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .files import errors_of
from .host_copy import host_copies
from .selection import check_network, check_values
from .wrapped import fit_names, own_state, plain_names, unwrap


def whole_network(model: object, name: str) -> nn.Module:
    """The network that a factory `name` has made, out of its wrappers; `ValueError` for what cannot be served."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"base model: expected an nn.Module of {name!r}, found {type(model).__name__}.")
    model = unwrap(model)
    check_network(model)
    return model


def take_weights(model: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of all tensors of a network or state dict on the CPU, tied ones once, under the network's own names.

    Raises:
        ValueError: a tensor has no values in memory, or a layer keeps them in a way of its own.
    """
    if isinstance(model, nn.Module):
        check_network(model)
        state = own_state(model)
    else:
        state = plain_names(model)
    for name, tensor in state.items():
        check_values(name, tensor)
    unique = {same_memory(tensor): name for name, tensor in reversed(state.items())}
    return host_copies({name: state[name] for name in reversed(unique.values())})


def put_weights(model: nn.Module, state: Mapping[str, torch.Tensor], path: str, name: str) -> None:
    """Give a network the tensors of [`take_weights`], in their types.

    Args:
        model (`nn.Module`): The network.
        state (`Mapping[str, torch.Tensor]`): All its tensors, tied ones once.
        path, name (`str`): Of the file and of the network, for messages.

    Raises:
        ValueError: the tensors are another network's.
    """
    own = own_state(model)
    if unexpected := [key for key in state if key not in own]:
        wrapped = fit_names(state, own).keys() <= own.keys()
        what = "a wrapper such as DataParallel named it; save the network in it" if wrapped else "another network's"
        raise ValueError(
            f"base model: {path}: tensor {min(unexpected)!r} is none of {name}'s, which has "
            f"{next(iter(own), None)!r} and so on: {what}."
        )
    # The other names of a tied tensor were not stored.
    stored = {same_memory(own[key]): key for key in state}
    values = {}
    for key, tensor in own.items():
        source = key if key in state else stored.get(same_memory(tensor))
        if source is None:
            raise ValueError(f"base model: {path} lacks tensor {key!r} of {name}.")
        value = values[key] = state[source]
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"base model: {path}: tensor {key!r}: expected {tensor.dtype} {tuple(tensor.shape)}, "
                f"found {value.dtype} {tuple(value.shape)}; the weights belong to another architecture."
            )
    for key, tensor in own.items():
        tensor.data = values[key]


def load_backbone(model: nn.Module, file: Path) -> None:
    """Give a network of timm all weights of a file but those of its classifier, which stays as it is.

    The file is of safetensors or of `torch.save`, of which nothing is run. Where its names are another library's,
    tensors in the order of timm's, of the same shapes and with names that end alike, are these.

    Raises:
        ValueError: there is no such file, or it is of another network.
    """
    if not file.is_file():
        raise ValueError(
            f"base_model.pretrained: expected a file with the weights of {type(model).__name__}, found none at "
            f"{file}; correct it, or set base_model.kwargs.pretrained=true instead, which downloads them."
        )
    names = model.pretrained_cfg["classifier"]
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = {name: tensor for name, tensor in own_state(model).items() if not name.startswith(heads)}
    state = _read_file(file)
    given = _in_order(own, state) or {name: t for name, t in state.items() if not name.startswith(heads)}
    wrong = [name for name in own.keys() | given.keys() if _shape(own.get(name)) != _shape(given.get(name))]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"base_model.pretrained: {file}: tensor {name!r}: expected {_shape(own.get(name))} of "
            f"{type(model).__name__}, found {_shape(given.get(name))}; the weights belong to another network, or have "
            "other names than timm's."
        )
    for name, tensor in own.items():
        tensor.data.copy_(given[name])


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    """Tensors by name of a file of safetensors, or of `torch.save`, which is told by its first bytes."""
    with file.open("rb") as stream:
        is_saved_by_torch = stream.read(4)[:2] in (b"PK", b"\x80\x02")
    if not is_saved_by_torch:
        with errors_of(f"base_model.pretrained: {file} is not a valid safetensors file", SafetensorError):
            return load_file(file)
    message = f"base_model.pretrained: {file} is no file of torch.save with tensors alone"
    with errors_of(message, RuntimeError, UnpicklingError, EOFError):
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{message}: expected a state dict, found {type(state).__name__} of other things.")
    return dict(state)


def _in_order(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The tensors of `state` by the names of `own`, where no name is the same and they are alike one by one.

    Those of the classifier come last, a weight and a bias.
    """
    if own.keys() & state.keys() or not 0 <= len(state) - len(own) <= 2:
        return None
    for (name, tensor), (other, found) in zip(own.items(), state.items(), strict=False):
        if name.rpartition(".")[2] != other.rpartition(".")[2] or tensor.shape != found.shape:
            return None
    return dict(zip(own, state.values(), strict=False))


def _shape(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def same_memory(tensor: torch.Tensor) -> tuple:
    """Key of the memory that a tensor views: tied parameters have the same."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
