"""Networks as a folder: one safetensors file each, or one folder of an adapter, and `index.json`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..adapters.folder import WEIGHTS as ADAPTER_WEIGHTS
from ..adapters.folder import is_constant, read_adapter, write_adapter
from ..base_model import BaseModel
from ..data.vectors import Vectors, empty_vectors
from ..files import atomic_folder, check_new, errors_of, partial_folder, read_object, write_json
from ..host_copy import host_copies
from ..identity import NetworkIdentity, check_same_network, generated_identity
from ..layout import ParameterLayout
from ..machine import process_state
from ..os_errors import writing

SCHEMA = 1


def write_networks(
    output_dir: str | Path,
    layout: ParameterLayout,
    states: Iterable[Mapping[str, torch.Tensor]],
    index: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    *,
    rows: Sequence[int] | None = None,
    num_networks: int | None = None,
    base_model: BaseModel | None = None,
) -> None:
    """Write networks to a new folder, which appears under its name when it is complete.

    Args:
        output_dir (`str` or `Path`): New or empty folder.
        layout ([`ParameterLayout`]): The generated tensors.
        states (`Iterable[Mapping[str, torch.Tensor]]`): Their values, network by network; they may be made on the way.
        index (`Mapping`): What else `index.json` says, of which network they are (`NetworkIdentity.to_dict()`) among
            it; JSON-able.
        extra (`Mapping`, *optional*): Further state dicts by file name, which `index` has to mention.
        rows (`Sequence[int]`, *optional*): Numbers of these networks, where processes of `accelerate launch` share
            them. All processes call; without this, the main one has all networks and writes them.
        num_networks (`int`, *optional*): Of all processes, with `rows`.
        base_model ([`BaseModel`], *optional*): The network around. Adapters are written as folders that peft loads,
            with the constants that are in its weights.

    Raises:
        ValueError: the folder is not empty.
    """
    output_dir = Path(output_dir)
    check_new(output_dir, "the networks")
    processes, partial, written = process_state(), partial_folder(output_dir), 0
    adapter = None if base_model is None else base_model.adapter
    constants = {} if adapter is None else base_model.adapter_constants(layout.names)

    def save(state: Mapping[str, torch.Tensor], name: str) -> None:
        if adapter is None:
            _save(state, partial / name)
        else:
            write_adapter((partial / name).parent, adapter, state, constants)

    with atomic_folder(output_dir) if processes.is_main_process else nullcontext():
        processes.wait_for_everyone()
        if rows is not None or processes.is_main_process:
            for row, state in zip(itertools.count() if rows is None else rows, states, strict=rows is not None):
                save(state, _file_name(row, adapter))
                written += 1
        processes.wait_for_everyone()
        if processes.is_main_process:
            for name, state in (extra or {}).items():
                save(state, name)
            known = {"schema": SCHEMA, "layout": layout.fingerprint, "num_parameters": layout.num_parameters}
            files = [_file_name(row, adapter) for row in range(written if num_networks is None else num_networks)]
            write_json(partial / "index.json", {**known, **index, "files": files})
    processes.wait_for_everyone()


def read_index(folder: str | Path) -> dict[str, Any]:
    """Content of `index.json`, in today's words: version 0.1 called a choice a selection."""
    index = read_object(Path(folder) / "index.json", files=list, pipeline=str, batch_norm=list)
    return index | {"choice": index.pop("selection")} if "selection" in index else index


def load_generated(folder: str | Path, layout: ParameterLayout, base_model: BaseModel | None = None) -> Vectors:
    """Read a folder of generated networks as vectors `(n, D)`, without re-estimated BatchNorm statistics.

    One network is read at a time; large ones become [`StoredVectors`], as those of a dataset do.

    Args:
        folder (`str` or `Path`): Generated networks.
        layout ([`ParameterLayout`]): The tensors that they should have.
        base_model ([`BaseModel`], *optional*): The network that they should belong to; not compared by default.

    Raises:
        ValueError: a file is missing, damaged or does not fit the layout or the index, or the networks belong to
            another base model; names the file and the tensor.
    """
    index = read_index(folder)
    found = generated_identity(folder)
    expected = NetworkIdentity.of("what they are read for", layout, base_model or found.base_model)
    check_same_network(found, expected, "read them with the layout and the base model that they were generated for")
    vectors = empty_vectors(len(index["files"]), torch.empty(0, layout.num_parameters))
    for row, (path, state) in enumerate(_states(Path(folder), index)):
        with errors_of(path):
            known = {*layout.names, *index.get("batch_norm", ())}
            if undeclared := sorted(name for name in state.keys() - known if not is_constant(name)):
                raise ValueError(f"tensor {undeclared[0]!r} is neither in the layout nor declared in index.json.")
            vector = layout.flatten(state)
            if not vector.isfinite().all():
                raise ValueError("expected finite values, found NaN or infinity.")
        vectors[row : row + 1] = vector
    return vectors


def load_statistics(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read the re-estimated BatchNorm statistics of a folder of generated networks, `(n, …)` by name; often none."""
    index = read_index(folder)
    values: dict[str, list[torch.Tensor]] = {name: [] for name in index.get("batch_norm", ())}
    for path, state in _states(Path(folder), index) if values else ():
        for name, rows in values.items():
            if name not in state:
                raise ValueError(f"{path}: expected tensor {name!r}, which index.json declares, found none.")
            rows.append(state[name])
    return {name: torch.stack(rows) for name, rows in values.items()}


def _states(folder: Path, index: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    for name in index["files"]:
        yield folder / name, read_network(folder, name, index)


def read_network(folder: Path, name: str, index: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a file that `index.json` names, by the network's names.

    Raises:
        ValueError: it is not in the folder, or damaged.
    """
    adapter = (index.get("base_model") or {}).get("adapter")
    path = folder / name
    inside = Path(name).parent.name if adapter is not None else Path(name).name
    expected = f"{inside}/{ADAPTER_WEIGHTS}" if adapter is not None else inside
    if name != expected or inside in ("", "..") or not path.is_file():
        raise ValueError(f"{folder}: index.json names {name!r}, found no such file in the folder.")
    if adapter is not None:
        return read_adapter(path, adapter)
    with errors_of(path, SafetensorError):
        return load_file(path)


def _file_name(row: int, adapter: Mapping[str, Any] | None) -> str:
    return f"{row:05d}.safetensors" if adapter is None else f"{row:05d}/{ADAPTER_WEIGHTS}"


def _save(state: Mapping[str, torch.Tensor], path: Path) -> None:
    with writing(path):
        save_file(host_copies(state), path, metadata={"format": "pt"})
