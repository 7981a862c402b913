"""State dicts from files that hold weights and nothing that has to be executed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

from ...files import errors_of
from ...hub.snapshot import some_of

# Checkpoints are found without what reads them.
if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# Under one of these names training scripts keep the network beside optimiser, epoch and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network")

# As `save_pretrained` and the Trainer name them, in the order in which they are looked for.
SAVED_MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def saved_model_files(names: Collection[str], read_index: Callable[[str], Any], where: str) -> list[str]:
    """The weights of a saved model among the files of a folder, its shards if it has several.

    `read_index` reads a JSON file of the folder by its name.

    Raises:
        ValueError: there are none, or the index of the shards is malformed or names files that are not in the folder.
    """
    found = next((name for name in SAVED_MODELS if name in names), None)
    if found is None:
        hint = "; merge the adapter into its base model first" if "adapter_config.json" in names else ""
        raise ValueError(f"{where}: expected model.safetensors or pytorch_model.bin, found {some_of(names)}{hint}.")
    if not found.endswith(".json"):
        return [found]
    index = read_index(found)
    try:
        shards = list(dict.fromkeys(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {found}: expected a 'weight_map' of tensors to files, found none.") from error
    for shard in shards:
        # What is in the folder is known by its plain name: a path that leads elsewhere is not among these.
        if not isinstance(shard, str) or shard not in names or not shard.endswith(SUFFIXES):
            raise ValueError(f"{where}: {found} names the shard {shard!r}, found no such weights in the folder.")
    if not shards:
        raise ValueError(f"{where}: {found}: expected a 'weight_map' of tensors to files, found it empty.")
    return shards


def read_state_dict(files: Sequence[Path], where: str) -> dict[str, torch.Tensor]:
    """Read a state dict from a file or from all shards of one, without executing anything.

    Raises:
        ValueError: a file is missing, truncated, or holds anything but one state dict; the file is named.
    """
    from .archive import read_archive

    state: dict[str, torch.Tensor] = {}
    for file in files:
        name = where if len(files) == 1 else f"{where}: {file.name}"
        tensors = choose_state(read_archive(file, name), name)
        _check_state(tensors, name)
        if twice := [tensor for tensor in tensors if tensor in state]:
            raise ValueError(f"{name}: tensor {twice[0]!r} is in another shard too, expected it once.")
        state.update(tensors)
    return state


def choose_state(value: Any, where: str) -> Any:
    """The state dict among what a file holds: all of it, a whole module's, or what is under one of [`WRAPPERS`].

    Raises:
        ValueError: several of the names have one.
    """
    import torch

    from .placeholder import state_of_module

    with errors_of(where):
        if (state := state_of_module(value)) is not None:
            return state
    if not isinstance(value, Mapping) or (value and all(isinstance(v, torch.Tensor) for v in value.values())):
        return value
    inner = {name: value[name] for name in WRAPPERS if isinstance(value.get(name), Mapping)}
    with errors_of(where):
        inner |= {name: state for name in WRAPPERS if (state := state_of_module(value.get(name))) is not None}
    if len(inner) > 1:
        first, second = list(inner)[:2]
        raise ValueError(f"{where}: expected one state dict, found {first!r} and {second!r}; save one alone.")
    return next(iter(inner.values()), value)


def _check_state(state: Any, where: str) -> None:
    import torch

    from .foreign import foreign_tensor
    from .placeholder import Placeholder

    if not isinstance(state, Mapping):
        found = repr(state) if isinstance(state, Placeholder) else type(state).__name__
        raise ValueError(f"{where}: expected a state dict, found {found}; save model.state_dict().")
    if not state:
        raise ValueError(f"{where}: expected a state dict, found no tensor at all.")
    for name, tensor in state.items():
        if found := foreign_tensor(tensor):
            raise ValueError(f"{where}: tensor {shorten(name)}: expected a dense one, found it {found}.")
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            kind = tensor.full_name if isinstance(tensor, Placeholder) else type(tensor).__name__
            raise ValueError(
                f"{where}: expected a state dict of tensors, alone or under one of {', '.join(WRAPPERS)}; found "
                f"{shorten(name)} of type {kind}."
            )
