"""Module names of transformers 4, by which older adapters call what transformers 5 has renamed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from torch import nn

from ....adapters.config import AdapterConfig
from .headers import PREFIX

# Behind the name of a module in the names of an adapter's tensors.
PARTS = (".lora_", ".ia3_l", ".vera_lambda_", ".base_layer.")


def newer_names(names: Iterable[str], base: nn.Module) -> dict[str, str]:
    """Names of an adapter's tensors for the network that transformers builds today, as far as its own tables say.

    Returns an empty dictionary where nothing is to be renamed, or where a new name is no module of the network either.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    if not isinstance(base, PreTrainedModel):
        return {}
    tables = [t for t in get_model_conversion_mapping(base) if isinstance(t, WeightRenaming)]
    modules, found = {name for name, _ in base.named_modules()}, {}
    for name in names:
        module = module_of(name)
        if module is None or module in modules:
            continue
        new = f"{module}.weight"
        for table in tables:
            new = table.rename_source_key(new)[0]
        new = new.removesuffix(".weight")
        if new not in modules:
            return {}
        found[name] = name.replace(f"{PREFIX}{module}", f"{PREFIX}{new}", 1)
    return found


def module_of(name: str) -> str | None:
    """The module that a tensor of an adapter is for; `None` of heads and foreign names."""
    cut = next((name.find(part) for part in PARTS if part in name), -1)
    return name[len(PREFIX) : cut] if cut > 0 and name.startswith(PREFIX) else None


def renamed_config(config: AdapterConfig, names: Collection[str], renamed: dict[str, str]) -> AdapterConfig:
    """A config that targets the modules of renamed tensors by their whole names.

    Raises:
        ValueError: it has patterns, which are for the older names.
    """
    values = dict(config.values)
    for key in ("rank_pattern", "alpha_pattern"):
        if values.get(key):
            raise ValueError(
                f"its modules have names of transformers 4, and so has {key}: rename them in adapter_config.json to "
                "those of transformers 5, e.g. attention.q_proj."
            )
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        values.pop(key, None)
    modules = {module_of(renamed.get(name, name)) for name in names}
    values["target_modules"] = sorted(module for module in modules if module is not None)
    return replace(config, values=values)
