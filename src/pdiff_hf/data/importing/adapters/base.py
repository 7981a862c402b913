"""The network that adapters are for: a folder of transformers or timm, a model of timm, or one on the Hub."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ....base_model import LIBRARIES, BaseModel
from ....files import errors_of, read_json
from ....hub.snapshot import split_hub_id
from ....weights import take_weights
from ..references import parse_base_model, read_config

# What transformers builds for a task of an adapter.
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
HEADS = ("SEQ_CLS", "TOKEN_CLS")


@dataclass(frozen=True)
class AdapterBase:
    """A base with its weights.

    Args:
        reference ([`BaseModel`]): Without weights.
        model (`nn.Module`): With them.
        name (`str`): As it was given; of a folder its last name.
        new (`frozenset[str]`): Names of tensors that its files lack, which a library has drawn at random.
        sha256 (`str`): Hash of all its tensors but those.
    """

    reference: BaseModel
    model: nn.Module
    name: str
    new: frozenset[str]
    sha256: str


def open_base(base: str, kwargs: Mapping[str, Any], task_type: str | None, num_labels: int | None) -> AdapterBase:
    """Build the network that adapters are for, with its weights.

    Args:
        base (`str`): A folder that transformers or timm have saved, `"timm:NAME"`, another `"LIBRARY:NAME"`, or
            `user/name` on the Hub.
        kwargs (`Mapping`): Arguments of the builder.
        task_type (`str`, *optional*): The task of the adapters, which says the class of transformers.
        num_labels (`int`, *optional*): Classes of the heads that are saved with the adapters.

    Raises:
        ValueError: there is none, it does not load, or the arguments do not fit.
    """
    path = Path(base).expanduser()
    library, colon, _ = base.partition(":")
    if colon and library in LIBRARIES and not path.exists():
        reference, model, new = _named(base, kwargs, num_labels)
        name = base
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--base: expected a saved model at {path}, with its config.json, found none there.")
        name = path.resolve().name
        reference, model, new = _saved(str(path), path, kwargs, task_type, num_labels)
    elif split_hub_id(base) is not None:
        name = base
        reference, model, new = _saved(base, None, kwargs, task_type, num_labels)
    else:
        raise ValueError(
            f"--base: expected the folder of a model, timm:NAME, or user/name on the Hub, found {base!r}."
        )
    known = {tensor: value for tensor, value in take_weights(model).items() if tensor not in new}
    return AdapterBase(reference, model.eval(), name, frozenset(new), _hash(known))


def _hash(tensors: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _named(base: str, kwargs: Mapping[str, Any], num_labels: int | None) -> tuple[BaseModel, nn.Module, set[str]]:
    reference = parse_base_model(base, kwargs)
    if reference.library != "timm":
        return reference, reference.build(), set()
    own = {} if num_labels is None or "num_classes" in kwargs else {"num_classes": num_labels}
    found = parse_base_model(base, {"pretrained": True, **own, **kwargs})
    with errors_of(f"--base {base}: its weights cannot be loaded", Exception):
        model = found.build()
    # Its weights go into the dataset.
    kept = {key: value for key, value in found.kwargs.items() if key != "pretrained"}
    return BaseModel.timm(found.name, **kept), model, set()


def _saved(
    source: str, folder: Path | None, kwargs: Mapping[str, Any], task_type: str | None, num_labels: int | None
) -> tuple[BaseModel, nn.Module, set[str]]:
    if folder is None:
        from ....hub.snapshot import Snapshot

        name, revision = split_hub_id(source)
        snapshot = Snapshot(name, "config.json", revision=revision)
        weights = snapshot.match("*.safetensors*") or snapshot.match("pytorch_model*.bin*")
        snapshot.fetch([file for file in weights if "/" not in file])
        folder = snapshot.folder
    values = read_json(folder / "config.json")
    if isinstance(values, dict) and isinstance(values.get("architecture"), str):
        return _timm_folder(source, folder, kwargs, num_labels)
    if kwargs:
        raise ValueError("--kwargs are for a base that is named LIBRARY:NAME; a folder has a config.json.")
    return _transformers_folder(source, folder, values, task_type, num_labels)


def _timm_folder(
    source: str, folder: Path, kwargs: Mapping[str, Any], num_labels: int | None
) -> tuple[BaseModel, nn.Module, set[str]]:
    import timm

    reference = read_config(folder / "config.json", source)
    own = {} if num_labels is None else {"num_classes": num_labels}
    reference = BaseModel.timm(reference.name, **{**reference.kwargs, **own, **kwargs})
    with errors_of(f"--base {source}: its weights cannot be loaded", Exception):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, **{**own, **kwargs})
    return reference, model, set()


def _transformers_folder(
    source: str, folder: Path, values: Any, task_type: str | None, num_labels: int | None
) -> tuple[BaseModel, nn.Module, set[str]]:
    import transformers

    names = values.get("architectures") if isinstance(values, dict) else None
    auto = CLASSES.get(task_type)
    if auto is None:
        # Adapters of no task are for the network that was saved.
        if not isinstance(names, list) or len(names) != 1 or not hasattr(transformers, str(names[0])):
            raise ValueError(
                f"--base {source}: config.json: expected one class of transformers as 'architectures', found "
                f"{names!r:.200}."
            )
        auto = names[0]
    options = {"num_labels": num_labels} if task_type in HEADS and num_labels is not None else {}
    with warnings.catch_warnings(), errors_of(f"--base {source}: its weights cannot be loaded", Exception):
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, auto).from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(options),
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    # Where it was loaded from says nothing of the network.
    model.config.name_or_path = ""
    return BaseModel.transformers(model.config, type(model).__name__), model, new
