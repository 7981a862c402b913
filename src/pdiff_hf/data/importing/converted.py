"""State dicts whose names transformers has changed since: it gives them those of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import transformers
from transformers import AutoConfig
from transformers.utils import logging

from ...base_model import BaseModel
from ...files import errors_of
from ...hub.snapshot import some_of
from ...wrapped import own_state

QUANTIZED = (torch.int8, torch.uint8)


def convert(base_model: BaseModel, state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """All tensors of a network of transformers that it makes of a state dict, each in the type that the file has.

    Raises:
        ValueError: transformers cannot load it; a tensor is missing, unexpected or of another shape; or it is
            quantized.
    """
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if not dtypes:
        raise ValueError(f"{where}: expected floating-point tensors, found none.")
    # transformers would take the codes of quantized weights for the weights.
    if codes := [name for name, tensor in state.items() if tensor.dtype in QUANTIZED]:
        raise ValueError(
            f"{where}: tensor {codes[0]!r}: expected floating-point values, found {state[codes[0]].dtype}; "
            "quantized networks cannot be imported."
        )
    found = _loaded(base_model, state, where, torch.float32 if len(dtypes) > 1 else next(iter(dtypes)))
    if len(dtypes) == 1:
        return found
    # Of several types, that of every tensor is found by loading numbers for them in the tensors' places.
    kinds = list(dtypes)
    numbers = {n: torch.full(t.shape, float(kinds.index(t.dtype))) for n, t in state.items() if t.dtype in dtypes}
    numbers = _loaded(base_model, {**state, **numbers}, where, torch.float32)
    typed: dict[int, torch.Tensor] = {}
    for name, tensor in found.items():
        number = numbers[name].unique() if tensor.is_floating_point() else ()
        if len(number) > 1:
            raise ValueError(f"{where}: tensor {name!r} is made of several types; convert them to one.")
        if id(tensor) not in typed:
            typed[id(tensor)] = tensor.to(kinds[int(number[0])]) if len(number) else tensor
    return {name: typed[id(tensor)] for name, tensor in found.items()}


def _loaded(
    base_model: BaseModel, state: Mapping[str, torch.Tensor], where: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All tensors of the network, in one type."""
    architecture = getattr(transformers, base_model.name)
    kinds = (RuntimeError, TypeError, ImportError, OSError)
    with errors_of(f"{where}: transformers cannot load it", *kinds), _silent_transformers():
        model, found = architecture.from_pretrained(
            None,
            config=AutoConfig.for_model(**base_model.kwargs["config"]),
            state_dict=dict(state),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    own = own_state(model)
    problem = ""
    for name, size, expected in sorted(found["mismatched_keys"])[:1]:
        problem = f"tensor {name!r}: expected shape {tuple(expected)}, found {tuple(size)}"
    if unexpected := sorted(found["unexpected_keys"]):
        problem = problem or f"tensor {unexpected[0]!r} is unexpected, the network has {some_of(own)}"
    if missing := sorted(found["missing_keys"]):
        problem = problem or f"tensor {missing[0]!r} is missing, found {some_of(state)}"
    if problem:
        fitting = len(own) - len(missing) - len(found["mismatched_keys"])
        raise ValueError(
            f"{where}: {fitting} of {len(own)} tensors fit {base_model.name}: {problem}; it belongs to another "
            f"architecture."
        )
    return {name: tensor.detach() for name, tensor in own.items()}


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
