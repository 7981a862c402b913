"""How the network of imported checkpoints is named: by a reference, a JSON file, or the config beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from ...base_model import BaseModel, split_reference
from ...files import errors_of, read_json
from ...own_code import plain_reference
from ...wording import argument


def parse_base_model(text: str, kwargs: Mapping[str, Any] | None = None) -> BaseModel:
    """Read `"timm:resnet18"`, `"transformers:BertForMaskedLM"`, `"import:package.module:factory"` or the like.

    `kwargs` are the arguments of the builder; of transformers and diffusers, the values of the config.

    Raises:
        ValueError: the library or the class is unknown, or does not take the arguments.
    """
    library, name = split_reference(text)
    kwargs = dict(kwargs or {})
    if library not in ("transformers", "diffusers"):
        return BaseModel(library, plain_reference(name) if library == "import" else name, kwargs)
    if library == "diffusers":
        return _diffusers_base({**kwargs, "_class_name": name}, text)
    architecture = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        raise ValueError(f"base model: transformers {transformers.__version__} has no model {name!r}.")
    return _transformers_base(architecture.config_class.model_type, kwargs, name, text)


def read_base_model(file: Path) -> BaseModel:
    """Read a JSON file of [`BaseModel.to_dict`]; `ValueError` when it is malformed."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a base model, found {type(values).__name__}.")
    with errors_of(file, TypeError):
        return BaseModel.from_dict(values, root=file.parent)


def read_config(file: Path, where: str) -> BaseModel:
    """The base model of a `config.json`, as transformers or timm write it; `ValueError` when it is neither."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: config.json: expected an object, found {type(values).__name__}.")
    if isinstance(values.get("architecture"), str):
        return _timm_base(values, where)
    if isinstance(values.get("_class_name"), str):
        return _diffusers_base(values, f"{where}: config.json")
    architectures, model_type = values.pop("architectures", None), values.pop("model_type", None)
    if not model_type or not isinstance(architectures, list) or len(architectures) != 1:
        raise ValueError(
            f"{where}: config.json: expected one of 'architectures' with a 'model_type' (transformers), an "
            f"'architecture' (timm) or a '_class_name' (diffusers), found none; "
            f"name the base model by {argument('base_model')}."
        )
    return _transformers_base(model_type, values, architectures[0], f"{where}: config.json")


def _transformers_base(model_type: str, values: dict[str, Any], architecture: str, where: str) -> BaseModel:
    # Configs check their values each in their own way.
    with errors_of(f"{where}: transformers does not take this config of a {model_type!r}", Exception):
        config = AutoConfig.for_model(model_type, **values)
    return BaseModel.transformers(config, architecture)


def _diffusers_base(values: Mapping[str, Any], where: str) -> BaseModel:
    # What the file was loaded from says nothing of the network.
    config = {name: value for name, value in values.items() if name not in ("_name_or_path", "_diffusers_version")}
    base_model = BaseModel("diffusers", values["_class_name"], {"config": config})
    with errors_of(f"{where}: diffusers does not take this config of a {base_model.name!r}", Exception):
        base_model.build()
    return base_model


def _timm_base(values: Mapping[str, Any], where: str) -> BaseModel:
    # The same way as timm.create_model("hf_hub:…") takes it.
    pretrained = values.get("pretrained_cfg", values)
    kwargs = values.get("model_args", {})
    if not isinstance(pretrained, dict) or not isinstance(kwargs, dict):
        raise ValueError(f"{where}: config.json: expected 'pretrained_cfg' and 'model_args' to be objects.")
    num_classes = values.get("num_classes", pretrained.get("num_classes"))
    found = {} if num_classes is None else {"num_classes": num_classes}
    size = pretrained.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        found["in_chans"] = size[0]
        if pretrained.get("fixed_input_size"):
            found["img_size"] = size[1:]
    return BaseModel.timm(values["architecture"], **{**found, **kwargs})
