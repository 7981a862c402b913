"""A `PeftModel` by its own names: its adapter's tensors, what files call them, which factors have a gauge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .wrapped import own_modules, own_state, unwrap

if TYPE_CHECKING:
    from peft import PeftModel

# The name that peft gives to an adapter by default; files have none.
ADAPTER = "default"

# Layers whose factors multiply: what standardises its weights, or computes with them in another way, is none.
PLAIN = {
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.modules.conv", "Conv1d"),
    ("torch.nn.modules.conv", "Conv2d"),
    ("torch.nn.modules.conv", "Conv3d"),
    ("timm.layers.conv2d_same", "Conv2dSame"),
}


def is_peft_model(model: nn.Module) -> bool:
    """Whether a network, whatever wraps it, is a base with an adapter."""
    # Known where it is defined: who has one has imported it, which takes seconds.
    module = sys.modules.get("peft.peft_model")
    return module is not None and isinstance(unwrap(model), module.PeftModel)


def called_network(model: nn.Module) -> nn.Module:
    """What computes the outputs: of a base with an adapter the base, whose layers have the adapter in them."""
    return unwrap(model).get_base_model() if is_peft_model(model) else model


def file_names(model: PeftModel) -> dict[str, str]:
    """Names of the adapter's tensors in its file, by those in the network; shared ones once, in the file's order.

    Constants, such as VeRA's shared matrices, are among them.
    """
    from peft import get_peft_model_state_dict

    model = unwrap(model)
    state = own_state(model)
    first_names = {id(tensor): name for name, tensor in reversed(state.items())}
    # Embeddings of the base are no part of it.
    found = get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER, save_embedding_layers=False)
    return {first_names[id(tensor)]: name for name, tensor in found.items()}


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """The layers with factors of LoRA by their names in the network."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in own_modules(model) if isinstance(module, LoraLayer)}


def factor_names(layer: nn.Module) -> tuple[str, str]:
    """What a layer of LoRA calls its factors A `(r, in)` and B `(out, r)`."""
    if layer.lora_embedding_A:
        return f"lora_embedding_A.{ADAPTER}", f"lora_embedding_B.{ADAPTER}"
    return f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight"


def has_gauge(layer: nn.Module) -> bool:
    """Whether a layer of LoRA uses its factors by their product alone: `(BG, G⁻¹A)` then is the same adapter."""
    if layer.lora_embedding_A:
        return True
    kinds = [type(factors[ADAPTER]) for factors in (layer.lora_A, layer.lora_B)]
    return all((kind.__module__, kind.__qualname__) in PLAIN for kind in kinds)


def gauged_names(model: nn.Module) -> set[str]:
    """Names of the factors of LoRA that have a gauge; none of a network without an adapter."""
    if not is_peft_model(model):
        return set()
    layers = {name: layer for name, layer in lora_layers(model).items() if has_gauge(layer)}
    return {f"{name}.{factor}" for name, layer in layers.items() for factor in factor_names(layer)}


def adapter_parameters(model: nn.Module) -> list[torch.Tensor]:
    """Parameters of the adapter, heads that are saved beside it among them.

    Raises:
        ValueError: the network has no adapter.
    """
    if not is_peft_model(model):
        raise ValueError(
            f"select: 'adapter' is for a network with an adapter of peft, found a {type(unwrap(model)).__name__}; "
            "give the base model its 'adapter', or take peft.get_peft_model(model, config)."
        )
    state = own_state(model)
    return [state[name] for name in file_names(model) if isinstance(state[name], nn.Parameter)]
