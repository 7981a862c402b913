"""The files of a saved model, and what they hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from ...hub.snapshot import some_of

# Of the shards that an index names.
SUFFIXES = (".safetensors", ".bin")

# As `save_pretrained` and the Trainer name them, in the order in which they are looked for.
SAVED_MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
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


def read_values(files: Sequence[Path], where: str) -> Any:
    """What a file holds, or the tensors of all shards of one, without executing anything; see [`read_archive`].

    Raises:
        ValueError: a file is missing, damaged or of another kind, or a tensor is in two shards; the file is named.
    """
    # Checkpoints are found without what reads them.
    from .archive import read_archive

    if len(files) == 1:
        return read_archive(files[0], where)
    state: dict[str, Any] = {}
    for file in files:
        name = f"{where}: {file.name}"
        tensors = read_archive(file, name)
        if not isinstance(tensors, Mapping):
            raise ValueError(f"{name}: expected a shard of a state dict, found {type(tensors).__name__}.")
        if twice := [tensor for tensor in tensors if tensor in state]:
            raise ValueError(f"{name}: tensor {shorten(twice[0])} is in another shard too, expected it once.")
        state.update(tensors)
    return state
