"""The combinations of `add_weighted_adapter`, run by the real peft on adapters without heads."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...adapters.gauge import canonical_rows, lora_pairs
from ...layout import ParameterLayout
from ...peft_model import ADAPTER, lora_layers
from .factors import mean_factors

MERGED = "merged"
PREFIX = "base_model.model."

# By combination, whether it takes a density, and whether it is a sum of factors: then equal adapters need weights of
# 1 / n² to give themselves, and a weight of 1 otherwise.
COMBINATIONS = {
    "linear": (False, True),
    "ties": (True, False),
    "ties_svd": (True, False),
    "dare_linear": (True, True),
    "magnitude_prune": (True, True),
}
DENSITIES = (0.2, 0.5, 0.8)


def weights_of(combination: str, num: int) -> list[float]:
    """Weights that are tried: first that with which `num` equal adapters give themselves; `1 / num` is usual."""
    _, adds = COMBINATIONS[combination]
    tried = [1 / num**2, 1 / num, 1.0] if adds else [1.0, 1 / num, 2.0]
    return list(dict.fromkeys(tried))


class PeftMerger:
    """Adapters side by side in a `PeftModel`, as merges need them: without heads and biases, scalings folded into B.

    peft refuses heads of several adapters, loses that of one, and takes rslora's √r twice. So what is merged is the
    LoRA part alone; all else is averaged beside it.

    Args:
        model (`PeftModel`): The network with any adapter; it is copied and not changed.
        layout ([`ParameterLayout`]): Of the rows.
        rows (`torch.Tensor` of shape `(n, D)`): The adapters.
    """

    def __init__(self, model: nn.Module, layout: ParameterLayout, rows: torch.Tensor):
        from peft import LoraConfig, get_peft_model

        layers = lora_layers(model)
        self._layout, self._rows, self._pairs = layout, rows, lora_pairs(layout)
        self._scaling = {name: layers[name].scaling[ADAPTER] for name in (pair.layer for pair in self._pairs)}
        self._names = [f"adapter_{number}" for number in range(len(rows))]
        (config,) = {config.r: config for config in model.peft_config.values()}.values()
        base = bare_base(model)
        settings = {
            "r": config.r,
            "lora_alpha": config.r,
            "lora_dropout": 0.0,
            "fan_in_fan_out": config.fan_in_fan_out,
            "target_modules": _targets([name.removeprefix(PREFIX) for name in layers], base),
        }
        with _quietly():
            self.model = get_peft_model(base, LoraConfig(**settings), self._names[0])
            for name in self._names[1:]:
                self.model.add_adapter(name, LoraConfig(**settings))
        found = lora_layers(self.model)
        for pair in self._pairs:
            own_b, own_a = self._factors(found[pair.layer])
            b, a = (rows[:, spec.offset : spec.offset + spec.numel] for spec in (pair.b, pair.a))
            for number, name in enumerate(self._names):
                _weight(own_a, name).data = a[number].reshape(pair.a.shape).clone()
                _weight(own_b, name).data = b[number].reshape(pair.b.shape) * self._scaling[pair.layer]

    @torch.no_grad()
    def merge(
        self, combination: str, weight: float, density: float | None = None, num: int | None = None, seed: int = 0
    ) -> torch.Tensor:
        """The first `num` adapters, all by default, merged with one `weight` each: a row `(1, D)`.

        Raises:
            Exception: whatever peft raises for layers that it does not merge.
        """
        names = self._names[:num]
        options = {"svd_full_matrices": False} if combination.endswith("svd") else {}
        try:
            # Random parts are drawn from the generator of all.
            with torch.random.fork_rng([]), _quietly():
                torch.manual_seed(seed)
                self.model.add_weighted_adapter(
                    names, [weight] * len(names), MERGED, combination, density=density, **options
                )
            row = mean_factors(self._layout, self._rows[: len(names)])
            layers = lora_layers(self.model)
            for pair in self._pairs:
                layer = layers[pair.layer]
                own_b, own_a = (_weight(factors, MERGED) for factors in self._factors(layer))
                factor = layer.scaling[MERGED] / self._scaling[pair.layer]
                for spec, values in ((pair.a, own_a), (pair.b, factor * own_b)):
                    row[0, spec.offset : spec.offset + spec.numel] = values.reshape(spec.shape).flatten()
            return canonical_rows(self._layout, row)
        finally:
            if MERGED in self.model.peft_config:
                with _quietly():
                    self.model.delete_adapter(MERGED)

    def _factors(self, layer: Any) -> tuple[Any, Any]:
        """What holds B and A of a layer by the adapters' names."""
        if layer.lora_embedding_A:
            return layer.lora_embedding_B, layer.lora_embedding_A
        return layer.lora_B, layer.lora_A


def merge_as_it_is(model: nn.Module, combination: str = "linear") -> nn.Module:
    """A copy of a network whose adapter was merged alone, with weight 1, as people call peft.

    peft takes `linear` for a single adapter, whatever it is asked for. Raises what peft raises.
    """
    model = copy.deepcopy(model)
    with _quietly():
        model.add_weighted_adapter([ADAPTER], [1.0], MERGED, combination, density=1.0)
        model.set_adapter(MERGED)
    return model.eval()


def bare_base(model: nn.Module) -> nn.Module:
    """A copy of the network below an adapter, with the heads that it had before."""
    with _quietly():
        return copy.deepcopy(model).unload().eval()


def reload(base: nn.Module, folder: Any) -> nn.Module:
    """What peft makes of an adapter's folder on a copy of its base."""
    from peft import PeftModel

    with _quietly():
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def _targets(names: Sequence[str], base: nn.Module) -> list[str] | str:
    """What makes peft target these modules and no others: names, or an expression where one is the end of others."""
    wanted = {*names}
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) and name not in wanted for name, _ in base.named_modules()):
        return "|".join(map(re.escape, names))
    return list(names)


def _weight(factors: Any, name: str) -> torch.Tensor:
    return factors[name].weight if isinstance(factors, nn.ModuleDict) else factors[name]


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # Of bases without a config, of densities of 1, of a second adapter on one base.
        warnings.simplefilter("ignore")
        yield
