"""Network of imported checkpoints: the names of its tensors, and the refusal of another one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ...base_model import BaseModel, split_reference
from ...files import errors_of, read_json
from ...hub.snapshot import some_of
from ...layout import ParameterLayout
from ...wording import argument
from ...wrapped import fit_names, own_buffers, own_state


def parse_base_model(text: str, kwargs: Mapping[str, Any] | None = None) -> BaseModel:
    """Read `"timm:resnet18"`, `"transformers:BertForMaskedLM"` or `"import:package.module:factory"`.

    `kwargs` are the arguments of the builder; of transformers, the values of the config.

    Raises:
        ValueError: the library or the class is unknown, or does not take the arguments.
    """
    library, name = split_reference(text)
    kwargs = dict(kwargs or {})
    if library != "transformers":
        return BaseModel(library, name, kwargs)
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
    architectures, model_type = values.pop("architectures", None), values.pop("model_type", None)
    if not model_type or not isinstance(architectures, list) or len(architectures) != 1:
        raise ValueError(
            f"{where}: config.json: expected one of 'architectures' with a 'model_type' (transformers), or an "
            f"'architecture' (timm), found neither; name the base model by {argument('base_model')}."
        )
    return _transformers_base(model_type, values, architectures[0], f"{where}: config.json")


def _transformers_base(model_type: str, values: dict[str, Any], architecture: str, where: str) -> BaseModel:
    # Configs check their values each in their own way.
    with errors_of(f"{where}: transformers does not take this config of a {model_type!r}", Exception):
        config = AutoConfig.for_model(model_type, **values)
    return BaseModel.transformers(config, architecture)


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


class Architecture:
    """Gives the tensors of checkpoints the names of the network, and refuses those of another one.

    Args:
        base_model ([`BaseModel`]): The network; of its own weights no use is made.

    Raises:
        ValueError: the network cannot be built.
    """

    def __init__(self, base_model: BaseModel):
        self.base_model = base_model
        # Constructors of networks do not check what they are given.
        kinds = (TypeError, KeyError, RuntimeError, ImportError, ZeroDivisionError, AttributeError)
        with errors_of(f"base model {base_model.name!r} cannot be built with its arguments", *kinds):
            self._model = base_model.build()
        self._num_classes = self._model.num_classes if base_model.library == "timm" else None
        state = own_state(self._model)
        self.buffers = set(own_buffers(self._model))
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._floats = {name for name, tensor in state.items() if tensor.is_floating_point()}
        # The first name of every tensor; tied ones have several.
        first: dict[int, str] = {}
        self._first_name = {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}

    def layout(self, state: Mapping[str, torch.Tensor], select: str | Sequence[str], buffers: bool) -> ParameterLayout:
        """The selected tensors in the types of the first checkpoint; the network is let go."""
        model = self._model
        del self._model
        for name, tensor in own_state(model).items():
            tensor.data = state[name]
        return ParameterLayout.from_model(model, select, buffers)

    def named(self, state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
        """All tensors of a checkpoint by the network's names; tied ones are one tensor.

        Raises:
            ValueError: a tensor is missing, unexpected, or of another shape or kind; file and tensor are named.
        """
        state = fit_names(state, self._shapes)
        for name in state.keys() & self._shapes.keys():
            if state[name].is_floating_point() != (name in self._floats):
                found = state[name].dtype
                expected = "floating-point" if name in self._floats else "integer"
                self._refuse(where, f"tensor {name!r}: expected {expected} values, found {found}")
        if self.base_model.library == "transformers":
            return self._converted(state, where)
        if unexpected := [name for name in state if name not in self._shapes]:
            self._refuse(where, f"tensor {unexpected[0]!r} is unexpected, the network has {some_of(self._shapes)}")
        tied: dict[str, torch.Tensor] = {}
        for name, tensor in state.items():
            if tensor.shape != self._shapes[name]:
                self._refuse_shape(where, name, self._shapes[name], tensor.shape)
            known = tied.setdefault(self._first_name[name], tensor)
            if known is not tensor and not torch.equal(known, tensor):
                self._refuse(where, f"tensor {name!r}: expected {self._first_name[name]!r}, which it is tied to")
        if missing := [name for name, first in self._first_name.items() if first not in tied]:
            self._refuse(where, f"tensor {missing[0]!r} is missing, found {some_of(state)}")
        return {name: tied[first] for name, first in self._first_name.items()}

    def _converted(self, state: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
        """As [`named`], by transformers, whose names in files are not always those of the network."""
        dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        if not dtypes:
            raise ValueError(f"{where}: expected floating-point tensors, found none.")
        # transformers would take the codes of quantized weights for the weights.
        if codes := [name for name, tensor in state.items() if tensor.dtype in (torch.int8, torch.uint8)]:
            raise ValueError(
                f"{where}: tensor {codes[0]!r}: expected floating-point values, found {state[codes[0]].dtype}; "
                "quantized networks cannot be imported."
            )
        found = self._loaded(state, where, torch.float32 if len(dtypes) > 1 else next(iter(dtypes)))
        if len(dtypes) == 1:
            return found
        # Of several types, that of every tensor is found by loading numbers for them in the tensors' places.
        kinds = list(dtypes)
        numbers = {n: torch.full(t.shape, float(kinds.index(t.dtype))) for n, t in state.items() if t.dtype in dtypes}
        numbers = self._loaded({**state, **numbers}, where, torch.float32)
        typed = dict(found)
        for name in dict.fromkeys(self._first_name.values()):
            number = numbers[name].unique() if found[name].is_floating_point() else ()
            if len(number) > 1:
                raise ValueError(f"{where}: tensor {name!r} is made of several types; convert them to one.")
            if len(number):
                typed[name] = found[name].to(kinds[int(number[0])])
        return {name: typed[first] for name, first in self._first_name.items()}

    def _loaded(self, state: dict[str, torch.Tensor], where: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All tensors of the network that transformers makes of a state dict, in one type."""
        architecture = getattr(transformers, self.base_model.name)
        kinds = (RuntimeError, TypeError, ImportError, OSError)
        with errors_of(f"{where}: transformers cannot load it", *kinds), _silent_transformers():
            model, found = architecture.from_pretrained(
                None,
                config=AutoConfig.for_model(**self.base_model.kwargs["config"]),
                state_dict=state,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        for name, size, expected in sorted(found["mismatched_keys"]):
            self._refuse_shape(where, name, expected, size)
        if unexpected := sorted(found["unexpected_keys"]):
            self._refuse(where, f"tensor {unexpected[0]!r} is unexpected, the network has {some_of(self._shapes)}")
        if missing := sorted(found["missing_keys"]):
            self._refuse(where, f"tensor {missing[0]!r} is missing, found {some_of(state)}")
        return {name: tensor.detach() for name, tensor in own_state(model).items()}

    def _refuse_shape(self, where: str, name: str, expected: Sequence[int], found: Sequence[int]) -> None:
        advice = ""
        if found and [self._num_classes, *found[1:]] == [*expected]:
            advice = f" If it has other classes only, give the base model num_classes={found[0]}."
        self._refuse(where, f"tensor {name!r}: expected shape {tuple(expected)}, found {tuple(found)}", advice)

    def _refuse(self, where: str, what: str, advice: str = "") -> None:
        raise ValueError(f"{where}: {what}; it belongs to another architecture than {self.base_model.name}.{advice}")


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without the report and the progress bar of loading: what does not fit is said in one line."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
