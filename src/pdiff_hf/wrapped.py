"""A network by its own names, whatever wraps it or parts of it: compilation, processes, checkpointing, averaging."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

# Classes that add a level to a network, and what they call the network. Known where they are defined: who has a model
# of one has imported it, and most of them take long to import.
WRAPPERS = {
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"): "_checkpoint_wrapped_module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("timm.utils.model_ema", "ModelEmaV2"): "module",
    ("timm.utils.model_ema", "ModelEmaV3"): "module",
}

# Of these, the names that nobody gives to a part of a network.
PRIVATE = frozenset(WRAPPERS.values()) - {"module"}

# Counter of `AveragedModel`, beside the network.
COUNTER = "n_averaged"

GATHER = (
    "on all processes, take torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True)), and pass what it returns on the main one"
)


def unwrap(model: nn.Module) -> nn.Module:
    """The network in whatever wraps it as a whole; wrapped parts of it stay as they are.

    Raises:
        ValueError: `FullyShardedDataParallel` has its parameters in shards, or it is a module of TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "expected a network of Python modules, found one of TorchScript; take the network that it was made from."
        )
    while (name := _wrapped_name(model)) is not None:
        if name == "_fsdp_wrapped_module" and _has_shards(model):
            raise ValueError(
                "expected a network with whole parameters, found one that FullyShardedDataParallel has cut into "
                f"shards: make layouts and base weights before it is wrapped; {GATHER}."
            )
        model = getattr(model, name)
    return model


def own_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules by the network's own names, in the order of its state dict; shared ones under each of their names.

    Raises:
        ValueError: see [`unwrap`].
    """
    model = unwrap(model)
    yield prefix.removesuffix("."), model
    for name, child in model._modules.items():
        if child is not None:
            yield from own_modules(child, f"{prefix}{name}.")


def own_parameters(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """As `named_parameters`, by the network's own names."""
    return _members(model, "_parameters", remove_duplicate)


def own_buffers(model: nn.Module, remove_duplicate: bool = True) -> dict[str, torch.Tensor]:
    """As `named_buffers`, by the network's own names."""
    return _members(model, "_buffers", remove_duplicate)


def _members(model: nn.Module, kind: str, remove_duplicate: bool) -> dict[str, torch.Tensor]:
    found, seen = {}, set()
    for prefix, module in own_modules(model):
        for name, tensor in vars(module)[kind].items():
            if tensor is not None and not (remove_duplicate and id(tensor) in seen):
                seen.add(id(tensor))
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """As `state_dict(keep_vars=True)`, by the network's own names, without what hooks make of it."""
    found = {}
    for prefix, module in own_modules(model):
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def gathered(model: nn.Module) -> nn.Module | dict[str, torch.Tensor]:
    """The model itself, or its whole state dict where processes keep shards of it; then all of them have to call this.

    Both `FullyShardedDataParallel` and `fully_shard` are known.
    """
    if not is_sharded(model):
        return model
    # Whoever has shards has imported most of it.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def is_sharded(model: nn.Module) -> bool:
    """Whether processes keep shards of a network at the moment."""
    flat = any(_wrapped_name(module) == "_fsdp_wrapped_module" and _has_shards(module) for module in model.modules())
    return flat or any(is_shard(parameter) for parameter in model.parameters())


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a `DTensor`, of which this process may have a part only."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def copy_network(model: nn.Module) -> nn.Module:
    """A deep copy of the network, without anything that wraps it or parts of it.

    Tensors that hooks compute before every forward pass, as `torch.nn.utils.weight_norm` does, are copied as values;
    the mixed precision of Accelerate goes.
    """
    model, copies = unwrap(model), {}
    modules = list(model.modules())
    computed = [t for module in modules for t in vars(module).values() if isinstance(t, torch.Tensor)]
    # Copying the results of a computation is refused by torch.
    copies |= {id(tensor): tensor.detach().clone() for tensor in computed if not tensor.is_leaf}
    # In place of a wrapper, the copy gets a copy of what is in it; the innermost come last.
    for module in reversed(modules):
        if _wrapped_name(module) is not None:
            copies[id(module)] = copy.deepcopy(unwrap(module), copies)
    network = copy.deepcopy(model, copies)
    for module in network.modules():
        if "_original_forward" in vars(module):
            module.forward = vars(module).pop("_original_forward")
    return network


def fit_names(state: Mapping[str, torch.Tensor], expected: Collection[str]) -> dict[str, torch.Tensor]:
    """A state dict without what wrappers put into its names, so that they fit those of a network.

    Names that no network has are removed wherever they are. A level that all names share, as `"module."` or
    Lightning's `"model."`, is removed as far as that makes more of the names `expected` ones, and `"module."` within a
    name when the name is an expected one without.
    """
    expected = set(expected)
    best = state = plain_names(state)
    fits = len(best.keys() & expected)
    is_known = True
    while fits < len(expected):
        state = {name: tensor for name, tensor in state.items() if name != COUNTER}
        level = next(iter(state), "").partition(".")[0] + "."
        if not state or not all(name.startswith(level) for name in state):
            break
        is_known = is_known and level == "module."
        state = {name.removeprefix(level): tensor for name, tensor in state.items()}
        found = len(state.keys() & expected)
        # Where nothing fits, wrappers are still no part of the network that the message will name.
        if found > fits or (not fits and is_known):
            best, fits = state, found
    # Of parts that are wrapped.
    inner = {name: ".".join(part for part in name.split(".") if part != "module") for name in best.keys() - expected}
    inner = {name: own for name, own in inner.items() if own in expected and own not in best}
    return {inner.get(name, name): tensor for name, tensor in best.items()}


def plain_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict by [`plain_name`]; `ValueError` for what is none."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"expected a network or a state dict of names and tensors, found a {type(state).__name__}.")
    return {plain_name(name): tensor for name, tensor in state.items()}


def plain_name(name: str) -> str:
    """A name without the parts that only wrappers give."""
    return ".".join(part for part in name.split(".") if part not in PRIVATE)


def _wrapped_name(model: nn.Module) -> str | None:
    """What a wrapper calls the module in it, `None` for any other module."""
    for kind in type(model).__mro__:
        if (kind.__module__, kind.__qualname__) in WRAPPERS:
            return WRAPPERS[kind.__module__, kind.__qualname__]
    return None


def _has_shards(model: nn.Module) -> bool:
    """Whether the parameters of a `FullyShardedDataParallel` are not whole, outside of `summon_full_params`."""
    return model._has_params and model.training_state.name != "SUMMON_FULL_PARAMS"
