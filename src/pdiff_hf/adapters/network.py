"""Networks with an adapter, built by peft; and what peft's own layers say of a configuration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ..files import errors_of
from ..peft_model import ADAPTER, factor_names, file_names, has_gauge, lora_layers
from ..wrapped import own_state
from .config import AdapterConfig, check_patterns

if TYPE_CHECKING:
    from peft import PeftModel

INSTALL = "adapters need peft: pip install 'pdiff-hf[adapters]'"


@dataclass(frozen=True)
class Factor:
    """The part that a tensor plays in a layer of LoRA.

    Args:
        role (`str`): `"A"`, `"B"` or `"bias"`, that of B.
        layer (`str`): The layer's name in the network.
        scaling (`float`): What peft multiplies BA and the bias by.
        rank (`int`): Rows of A.
        groups (`int`): Of a grouped convolution, whose A is whole and whose B is cut; 1 otherwise.
        has_gauge (`bool`): Whether the factors count by their product alone.
    """

    role: str
    layer: str
    scaling: float
    rank: int
    groups: int
    has_gauge: bool


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of adapters of one configuration, as peft's own layers say.

    Args:
        names (`dict[str, str]`): Names in the network by those in the file, in the file's order.
        shapes (`dict[str, tuple[int, ...]]`): By the name in the network.
        parameters (`frozenset[str]`): Names in the network of those that are trained; the others are constants.
        factors (`dict[str, Factor]`): Of LoRA, by the name in the network.
        heads (`frozenset[str]`): Names in the network of those that were trained beside the adapter.
    """

    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    parameters: frozenset[str]
    factors: dict[str, Factor]
    heads: frozenset[str]

    @classmethod
    def of(cls, model: PeftModel) -> AdapterTensors:
        """Those of a network, which may be on the meta device."""
        state, names = own_state(model), {file: own for own, file in file_names(model).items()}
        factors = {}
        for layer_name, layer in lora_layers(model).items():
            first, second = (f"{layer_name}.{factor}" for factor in factor_names(layer))
            rank, width = state[first].shape[0], state[second].shape[1]
            about = (layer_name, float(layer.scaling[ADAPTER]), rank, max(1, rank // width), has_gauge(layer))
            parts = {"A": first, "B": second, "bias": f"{layer_name}.lora_B.{ADAPTER}.bias"}
            factors |= {name: Factor(role, *about) for role, name in parts.items() if name in state}
        return cls(
            names,
            {own: tuple(state[own].shape) for own in names.values()},
            frozenset(own for own in names.values() if isinstance(state[own], nn.Parameter)),
            factors,
            frozenset(own for own in names.values() if f".modules_to_save.{ADAPTER}." in own),
        )


def require_peft() -> Any:
    """The library; `ValueError` that says how it is installed, where it is not."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error}).") from error
    return peft


def add_adapter(model: nn.Module, config: Mapping[str, Any]) -> PeftModel:
    """A new adapter around a network, by a checked configuration.

    Raises:
        ValueError: peft is not installed, or does not take the configuration for this network.
    """
    peft = require_peft()
    # For some tasks, peft adds heads to the list that it is given.
    values = copy.deepcopy({key: value for key, value in config.items() if key != "peft_type"})
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(config["peft_type"])]
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    with (
        warnings.catch_warnings(),
        errors_of(f"peft does not take this adapter for {type(model).__name__}", Exception),
    ):
        # Of models without a config, and of constants that are drawn anew here and then read.
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, kind(**values), low_cpu_mem_usage=is_meta).eval()


def tensors_of_config(config: AdapterConfig, base: nn.Module) -> AdapterTensors:
    """What peft builds by a configuration around a base, which is on the meta device and is left as it was.

    Raises:
        ValueError: an expression takes too long, or peft does not take the configuration for this base.
    """
    check_patterns(config, [name for name, _ in base.named_modules()])
    model = add_adapter(copy.deepcopy(base), config.values | {"peft_type": config.kind})
    return AdapterTensors.of(model)
