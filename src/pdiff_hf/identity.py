"""Which network parameters belong to: whatever is put together is compared here, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .adapters.folder import network_name
from .base_model import BaseModel
from .files import errors_of, read_json
from .layout import ParameterLayout, TensorSpec

# Of a config, what networks may differ in without computing anything else; and dropout, which only training knows.
NAMES = (
    "_name_or_path",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "transformers_version",
    "use_cache",
)

OTHER_DATASET = "give the dataset the pipeline was trained on"

# Hashes of the tensors of weights files, by the hash of the file: each is read once.
_TENSORS: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class NetworkIdentity:
    """What a dataset, an autoencoder, a pipeline or generated networks are parameters of.

    Two of them are of the same network when they have one layout and everything around it is the same: the
    architecture, and the *rest*, the weights of the base model that are not in the layout, counters left out. Whole
    networks have no rest, from whichever initialisation they come.

    Args:
        where (`str`): Folder or repository, as people know it.
        fingerprint (`str`): [`ParameterLayout.fingerprint`].
        layout ([`ParameterLayout`], *optional*): The layout itself, where it is at hand.
        base_model ([`BaseModel`], *optional*): The network around; its weights need not be at hand.
        recorded_rest (`str`, *optional*): [`~NetworkIdentity.rest`] as it was when the base model was at hand.
    """

    where: str
    fingerprint: str
    layout: ParameterLayout | None = None
    base_model: BaseModel | None = None
    recorded_rest: str | None = None

    @classmethod
    def of(cls, where: str | Path, layout: ParameterLayout, base_model: BaseModel | None = None) -> NetworkIdentity:
        """That of what has this layout and base model."""
        return cls(str(where), layout.fingerprint, layout, base_model)

    @classmethod
    def of_config(cls, where: str | Path, values: Mapping[str, Any]) -> NetworkIdentity:
        """That of an autoencoder by the `layout` of its config; version 0.1 named no base model there."""
        layout, base = ParameterLayout.from_dict(values), values.get("base_model")
        base_model = None if base is None else BaseModel.from_dict(dict(base))
        return cls(str(where), layout.fingerprint, layout, base_model, values.get("rest"))

    @property
    def rest(self) -> str | None:
        """Hash of the rest, of an empty one as well; `None` when it is not known."""
        if self.recorded_rest is not None:
            return self.recorded_rest
        tensors = self.rest_tensors
        return None if tensors is None else _hash(tensors)

    @property
    def rest_tensors(self) -> dict[str, str] | None:
        """Hash of every tensor of the rest by its name; `None` when the weights are not at hand."""
        if self.layout is None or self.base_model is None or self.base_model.weights is None:
            return None
        try:
            return _rest_tensors(self.base_model, self.layout)
        except ValueError:
            # Missing or damaged weights are found by whoever needs them.
            return None

    def to_dict(self) -> dict[str, Any]:
        """What artefacts without weights of their own say: `layout`, the fingerprint, `base_model` and `rest`."""
        base = None if self.base_model is None else self.base_model.to_dict()
        return {"layout": self.fingerprint, "base_model": base, "rest": self.rest}

    def to_config(self) -> dict[str, Any]:
        """The `layout` of an autoencoder's config, see [`~NetworkIdentity.of_config`]."""
        values = self.to_dict()
        return {**self.layout.to_dict(), "base_model": values["base_model"], "rest": values["rest"]}


def _rest_tensors(base_model: BaseModel, layout: ParameterLayout) -> dict[str, str] | None:
    path = base_model.checked_weights()
    with errors_of(path, SafetensorError), safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if not names.issuperset(layout.names):
            # A tied tensor is in the file under another name, which only the network knows.
            return None
        slices = {name: file.get_slice(name) for name in names.difference(layout.names)}
        rest = [name for name, s in slices.items() if s.get_shape() or s.get_dtype().startswith(("F", "BF"))]
        if rest and base_model.sha256 not in _TENSORS:
            _TENSORS[base_model.sha256] = {name: _hash_tensor(file.get_tensor(name)) for name in sorted(names)}
    return {name: _TENSORS[base_model.sha256][name] for name in sorted(rest)}


def _hash_tensor(tensor: torch.Tensor) -> str:
    described = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    described.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return described.hexdigest()


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


EMPTY = _hash({})


def read_identity(folder: str | Path, where: str | None = None) -> NetworkIdentity:
    """The identity of a folder with a parameter dataset, a pipeline, an autoencoder or generated networks.

    Args:
        folder (`str` or `Path`): On this machine.
        where (`str`, *optional*): How it is called; by its path, or its repository's name, by default.

    Raises:
        ValueError: the folder is none of these, or its files are damaged.
    """
    folder = Path(folder)
    where = where or shown(folder)
    if (folder / "layout.json").is_file():
        values = read_json(folder / "layout.json")
        with errors_of(folder / "layout.json", KeyError, TypeError):
            base_model = BaseModel.from_dict(values["base_model"], root=folder)
            return NetworkIdentity.of(where, ParameterLayout.from_dict(values), base_model)
    if (folder / "model_index.json").is_file():
        values = read_json(folder / "model_index.json")
        autoencoder = read_identity(folder / "autoencoder", where)
        with errors_of(folder / "model_index.json", TypeError):
            return pipeline_identity(where, autoencoder, BaseModel.from_dict(values.get("base_model"), root=folder))
    if (folder / "config.json").is_file():
        with errors_of(folder / "config.json", KeyError, TypeError):
            return NetworkIdentity.of_config(where, read_json(folder / "config.json")["layout"])
    if (folder / "index.json").is_file():
        return generated_identity(folder, where)
    raise ValueError(f"expected a parameter dataset, a pipeline or generated networks at {folder}, found none.")


def generated_identity(folder: str | Path, where: str | None = None) -> NetworkIdentity:
    """The identity of generated networks, which may lie beside the `layout.json` of others; see [`read_identity`]."""
    folder, file = Path(folder), Path(folder) / "index.json"
    values = read_json(file)
    with errors_of(file, KeyError, TypeError, AttributeError):
        # The weights are where the pipeline is, if that is still there.
        pipeline = values.get("pipeline", "")
        root = folder / pipeline if pipeline.startswith("..") else folder
        base_model = BaseModel.from_dict(values.get("base_model"), root=root)
        name = next(iter(values["files"]), "")
        adapter = None if base_model is None else base_model.adapter
        # The network's own file, or that of its adapter in a folder of its own.
        file = folder / Path(name).name if adapter is None else folder / Path(name).parent.name / Path(name).name
        layout = _layout_of(file, values.get("batch_norm", ()), adapter)
        return NetworkIdentity(where or shown(folder), values["layout"], layout, base_model, values.get("rest"))


def _layout_of(
    file: Path, without: Collection[str], adapter: Mapping[str, Any] | None = None
) -> ParameterLayout | None:
    """What is known of a layout by a network with its tensors: all but their order. `None` for a file that is none."""
    specs, offset = [], 0
    try:
        with safe_open(file, framework="pt") as opened:
            for name in sorted(set(opened.keys()).difference(without)):
                tensor = opened.get_tensor(name)
                specs.append(TensorSpec.of(name if adapter is None else network_name(name, adapter), tensor, offset))
                offset += tensor.numel()
        return ParameterLayout(tuple(specs))
    except (OSError, SafetensorError, ValueError):
        # Whoever reads the networks finds out.
        return None


def pipeline_identity(where: str, autoencoder: NetworkIdentity, base_model: BaseModel | None) -> NetworkIdentity:
    """The identity of a pipeline by those of its parts.

    Raises:
        ValueError: the autoencoder was trained for another network.
    """
    if base_model is None:
        return replace(autoencoder, where=where)
    own = NetworkIdentity.of(where, autoencoder.layout, base_model)
    if autoencoder.base_model is not None:
        check_same_network(autoencoder, own, "give the autoencoder that the pipeline was trained with")
    # Then they have one rest, which need not be read again.
    return replace(own, recorded_rest=autoencoder.recorded_rest)


def shown(folder: str | Path) -> str:
    """A folder as people know it: by its path, or in the Hub's cache by the name of the repository."""
    found = re.search(r"(?:^|/)(?:models|datasets)--([^/]+?)--([^/]+)/snapshots/[^/]+", Path(folder).as_posix())
    return str(folder) if found is None else f"{found[1]}/{found[2]}"


def check_same_network(first: NetworkIdentity, second: NetworkIdentity, advice: str) -> None:
    """Compare what is put together. What is not known is not taken for different: then there is a warning.

    Args:
        first, second ([`NetworkIdentity`]): Both sides.
        advice (`str`): What to do when they differ, the last part of the message.

    Raises:
        ValueError: they have different layouts, or different networks around the same layout.
    """
    difference = _layout_difference(first, second) or _base_difference(first, second)
    if difference is not None:
        raise ValueError(f"{first.where} and {second.where} belong to different networks: {difference}; {advice}.")


def _layout_difference(first: NetworkIdentity, second: NetworkIdentity) -> str | None:
    if first.fingerprint == second.fingerprint:
        return None
    if first.layout is None or second.layout is None:
        return f"their layouts are {str(first.fingerprint)[:12]} and {str(second.fingerprint)[:12]}"
    specs, others = ({spec.name: spec for spec in side.layout.tensors} for side in (first, second))
    for name in [*specs, *others]:
        if name not in specs or name not in others:
            has, lacks = (first, second) if name in specs else (second, first)
            return f"tensor {name!r} is generated in {has.where} and not in {lacks.where}"
        for key in ("shape", "dtype", "transform"):
            a, b = getattr(specs[name], key), getattr(others[name], key)
            if a != b:
                return f"tensor {name!r} has the {key} {a} in {first.where} and {b} in {second.where}"
    return "their tensors are in another order"


def _base_difference(first: NetworkIdentity, second: NetworkIdentity) -> str | None:
    a, b = first.base_model, second.base_model
    if a is not None and b is not None:
        if difference := reference_difference(a, b):
            return f"base model: {difference}"
        # Weights that neither has are those that the architecture is built with.
        if a.sha256 == b.sha256:
            return None
    elif a is b:
        return None
    rests = [first.rest, second.rest]
    if None in rests:
        known = next((rest for rest in rests if rest is not None), None)
        if known != EMPTY:
            unknown, other = (first, second) if rests[0] is None else (second, first)
            lacks = "base model" if unknown.base_model is None else "weights of its base model"
            warnings.warn(
                f"whether {unknown.where} and {other.where} belong to the same network cannot be checked: "
                f"{unknown.where} has no {lacks}.",
                stacklevel=3,
            )
        return None
    if rests[0] == rests[1]:
        return None
    tensors, others = first.rest_tensors, second.rest_tensors
    if tensors is None or others is None:
        return "the weights of the base model that are not generated differ"
    names = [name for name in [*tensors, *(others.keys() - tensors.keys())] if tensors.get(name) != others.get(name)]
    more = len(names) - 1
    also = f", and {more} more {'tensors do' if more > 1 else 'tensor does'}" if more else ""
    return f"tensor {names[0]!r} of the base model differs{also}"


def _adapter_difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first key in which the configs of two adapters differ, `{}` being that of none; names of bases aside."""
    if bool(first) != bool(other):
        return f"an adapter ({(first or other)['peft_type']}) and none"
    keys = [key for key in [*first, *other] if first.get(key) != other.get(key) and key != "base_model_name_or_path"]
    if not keys:
        return None
    key = keys[0]
    return f"adapter, {key!r}: {first.get(key, 'its default')} and {other.get(key, 'its default')}"


def reference_difference(first: BaseModel, other: BaseModel) -> str | None:
    """What two references with the same tensors may compute differently, e.g. the number of heads; `None` for nothing.

    Of transformers' configs only the keys that both have are compared: others came with another version.
    """
    for a, b in ((first.library, other.library), (first.name, other.name)):
        if a != b:
            return f"{a} and {b}"
    if (difference := _adapter_difference(first.adapter or {}, other.adapter or {})) is not None:
        return difference
    a, b = first.kwargs, other.kwargs
    # Weights of its own replace the pretrained ones.
    keys, ignored = a.keys() | b.keys(), ("pretrained",) if first.weights or other.weights else ()
    if first.library == "transformers":
        a, b = a["config"], b["config"]
        keys, ignored = a.keys() & b.keys(), NAMES
    for key in sorted(keys):
        if key not in ignored and "drop" not in key and (key not in a or key not in b or a[key] != b[key]):
            return f"{key!r}: {a.get(key, 'its default')} and {b.get(key, 'its default')}"
    return None
