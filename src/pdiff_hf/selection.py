"""Which tensors of a network are generated, and which cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .peft_model import adapter_parameters
from .wrapped import GATHER, is_shard, own_buffers, own_modules, own_parameters, own_state, unwrap

# float64 would lose digits in a float32 vector.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@runtime_checkable
class _TimmModel(Protocol):
    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]: ...


def select_tensors(model: nn.Module, select: str | Sequence[str], buffers: bool) -> dict[str, torch.Tensor]:
    """The tensors of a model that [`ParameterLayout.from_model`] selects, by the network's own names.

    Raises:
        ValueError: nothing is selected, a pattern matches nothing, or a tensor cannot be generated.
    """
    model = unwrap(model)
    check_network(model)
    parameters = {n: p for n, p in own_parameters(model).items() if p.is_floating_point() or p.is_complex()}
    if not parameters:
        raise ValueError("expected a network with floating-point parameters, found none; buffers alone do not do.")
    forms = f"'all', 'last_norms:K', 'head', 'adapter' or globs on names such as {', '.join(list(parameters)[:3])}"
    if select == "all":
        chosen = set(parameters)
    elif select == "head":
        chosen = _names_of(_head(model), parameters)
    elif select == "adapter":
        chosen = _names_of(adapter_parameters(model), parameters)
    elif isinstance(select, str) and select.startswith("last_norms:"):
        chosen = _names_of(_last_norms(model, select), parameters)
    else:
        chosen = set()
        aliases = own_parameters(model, remove_duplicate=False)
        for pattern in [select] if isinstance(select, str) else select:
            matched = _names_of([aliases[name] for name in aliases if fnmatchcase(name, pattern)], parameters)
            if not matched:
                raise ValueError(f"select: {pattern!r} matches no parameter; expected {forms}.")
            chosen |= matched
    if not chosen:
        raise ValueError(
            f"select: {select!r} selects none of the model's {len(parameters)} parameters; expected {forms}."
        )
    tensors = {name: parameter for name, parameter in parameters.items() if name in chosen}
    if buffers:
        owners = {name.rpartition(".")[0] for name in chosen}
        found = {name: buffer for name, buffer in own_buffers(model).items() if buffer.is_floating_point()}
        tensors |= {n: b for n, b in found.items() if select == "all" or n.rpartition(".")[0] in owners}
        # In the order of the state dict, which also lacks the buffers that are not saved.
        tensors = {name: tensors[name] for name in own_state(model) if name in tensors}
    _check_selected(tensors, model)
    return tensors


def check_network(model: nn.Module) -> None:
    """Raise `ValueError` naming the first part of a network that its parameters and buffers do not describe."""
    for name, tensor in own_state(model).items():
        if is_lazy(tensor):
            raise ValueError(
                f"tensor {name!r} has no shape yet, its layer is a lazy one; run one batch through the network first."
            )
    for name, module in own_modules(model):
        # Quantized layers, and whatever else keeps values where nobody finds them.
        kept = ("_save_to_state_dict", "get_extra_state")
        if any(getattr(type(module), method) is not getattr(nn.Module, method) for method in kept):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}): expected parameters and buffers, found that it saves its "
                "state in a way of its own, as quantized layers do; take the network from before it was converted."
            )


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raise `ValueError` when the values of a tensor cannot be read from its memory."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"tensor {name!r}: expected a torch.Tensor, found a {type(tensor).__name__}.")
    what = f"tensor {name!r}: expected values in memory, found "
    if is_lazy(tensor):
        raise ValueError(f"{what}a lazy layer that has no shape yet; run one batch through the network first.")
    if is_shard(tensor):
        raise ValueError(f"{what}a shard of a DTensor, as FSDP makes them; {GATHER}.")
    if tensor.is_meta:
        raise ValueError(f"{what}that it is on the meta device; build the network on another one.")
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested tensors" if tensor.is_nested else f"the layout {str(tensor.layout).removeprefix('torch.')}"
        raise ValueError(f"{what}{kind}; convert it to a dense tensor.")
    if tensor.is_quantized or is_traceable_wrapper_subclass(tensor):
        kind = tensor.dtype if tensor.is_quantized else type(tensor).__name__
        raise ValueError(f"{what}{kind}; take the network from before it was converted.")


def _check_selected(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise ValueError(
                f"tensor {name!r} is complex ({tensor.dtype}), expected one of {', '.join(DTYPES)}; keep its real and "
                "imaginary parts in a real parameter (torch.view_as_complex in forward), or select other tensors by "
                "globs."
            )
        if tensor.dtype not in DTYPES.values():
            raise ValueError(
                f"tensor {name!r} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected one of "
                f"{', '.join(DTYPES)}; convert the model with model.float() first."
            )
        # A layout needs shapes alone, which shards and tensors without memory have.
        if tensor.is_meta or is_shard(tensor):
            continue
        check_values(name, tensor)
        if torch._debug_has_internal_overlap(tensor) == 1:
            raise ValueError(
                f"tensor {name!r} is expanded: several of its values are one in memory; give it memory of its own "
                "(tensor.clone())."
            )
    _check_memory(tensors, own_state(model))


def _check_memory(selected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a selected tensor that is a part of another one: what is generated for one would change both."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    first_names = {id(tensor): name for name, tensor in reversed(state.items())}
    for name in first_names.values():
        tensor = state[name]
        is_plain = tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)
        if is_plain and not tensor.is_meta and tensor.numel():
            span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.storage_offset() * tensor.itemsize
            place = (start, start + span * tensor.itemsize, name)
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(place)
    for places in by_storage.values():
        for (_, stop, first), (start, _, second) in pairwise(sorted(places)):
            if start < stop and {first, second} & selected.keys() and _overlap(state[first], state[second]):
                raise ValueError(
                    f"tensors {first!r} and {second!r} share memory without being one parameter, so that generating "
                    "one would change the other; tie them as one parameter, or give each its own (tensor.clone())."
                )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.itemsize != b.itemsize:
        return True
    # Columns of one matrix lie between each other.
    used = torch.zeros(a.untyped_storage().nbytes() // a.itemsize, dtype=torch.bool)
    used.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return used.as_strided(b.shape, b.stride(), b.storage_offset()).any().item()


def _names_of(chosen: Iterable[nn.Parameter], parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """First names of the chosen parameters; tied ones have several."""
    ids = {id(parameter) for parameter in chosen}
    return {name for name, parameter in parameters.items() if id(parameter) in ids}


def _last_norms(model: nn.Module, select: str) -> list[nn.Parameter]:
    count = select.removeprefix("last_norms:")
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"select: expected 'last_norms:K' with a positive number K, found {select!r}.")
    norms = [module for module in model.modules() if is_norm(module)]
    norms = [own for own in (list(norm.parameters(recurse=False)) for norm in norms) if own]
    if len(norms) < int(count):
        raise ValueError(
            f"select: expected at least {count} normalisation layers with parameters for {select!r}, "
            f"found {len(norms)}; choose a smaller K or another selection."
        )
    return [parameter for own in norms[-int(count) :] for parameter in own]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, also of timm, transformers and others."""
    # By class name: there is no common base class.
    return "norm" in type(module).__name__.lower()


def _head(model: nn.Module) -> list[nn.Parameter]:
    # Whoever has a model of transformers has imported it, which takes seconds.
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        # The head is what a model has beside its backbone.
        backbone = {id(parameter) for parameter in model.base_model.parameters()}
        output = model.get_output_embeddings()
        tied = [] if output is None else list(output.parameters())
        head = [parameter for parameter in model.parameters() if id(parameter) not in backbone] + tied
    elif isinstance(model, _TimmModel):
        found = model.get_classifier()
        head = [p for module in (found if isinstance(found, tuple) else (found,)) for p in module.parameters()]
    else:
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        head = [parameter for module in linears[-1:] for parameter in module.parameters()]
    if not head:
        raise ValueError("select: 'head' finds no classifier in this model; name its parameters by globs instead.")
    return head
