"""One configuration for adapters of many: their rows have its ranks and scalings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ....adapters.config import AdapterConfig
from ....adapters.network import AdapterTensors, Factor
from ....layout import ParameterLayout

SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Source:
    """One kind of adapters of a collection: a configuration, what peft builds by it, and the first that has it."""

    config: AdapterConfig
    tensors: AdapterTensors
    where: str


def common_config(sources: Sequence[Source], keep_scaling: bool) -> AdapterConfig:
    """The configuration that rows of all adapters are for, without patterns.

    Rank, alpha and rslora are those of the adapters where all share them; else the rank is the largest, and alpha is
    equal to it: scalings are then in the factors. With `keep_scaling` all have to be equal, and stay as they are.

    Raises:
        ValueError: the adapters are of several kinds or have different tensors, or scalings that have to be equal.
    """
    first = sources[0]
    for other in sources[1:]:
        _check_same(first, other, keep_scaling)
    values = first.config.values
    if first.config.kind != "LORA" or keep_scaling:
        return first.config
    shared = [{key: source.config.values.get(key) for key in SCALING} for source in sources]
    has_patterns = any(one["rank_pattern"] or one["alpha_pattern"] for one in shared)
    values = {key: value for key, value in values.items() if key not in ("rank_pattern", "alpha_pattern")}
    if has_patterns or any(_strength(one) != _strength(shared[0]) for one in shared):
        rank = max(factor.rank for source in sources for factor in source.tensors.factors.values())
        values |= {"r": rank, "lora_alpha": rank}
        values.pop("use_rslora", None)
    return AdapterConfig(first.config.kind, values, first.config.base_name)


def _strength(values: Mapping[str, object]) -> tuple:
    return values["r"], values["lora_alpha"], bool(values["use_rslora"])


def _check_same(first: Source, other: Source, keep_scaling: bool) -> None:
    if first.config.kind != other.config.kind:
        raise ValueError(
            f"{other.where} is of the kind {other.config.kind}, {first.where} of {first.config.kind}; import adapters "
            "of one kind."
        )
    for key, default in (("use_dora", False), ("lora_bias", False)):
        a, b = (bool(source.config.values.get(key, default)) for source in (first, other))
        if a != b:
            raise ValueError(f"{other.where}: {key} is {b}, in {first.where} it is {a}; import adapters of one kind.")
    names, others = first.tensors.names, other.tensors.names
    if names.keys() != others.keys():
        name = next(name for name in (*names, *others) if name not in names or name not in others)
        has, lacks = (first, other) if name in names else (other, first)
        raise ValueError(
            f"tensor {name!r:.160} is in {has.where} and not in {lacks.where}; import adapters of the same layers."
        )
    for own, factor in first.tensors.factors.items():
        b = other.tensors.factors[own]
        if (keep_scaling or not factor.has_gauge) and (factor.rank, factor.scaling) != (b.rank, b.scaling):
            why = (
                "scalings are kept" if keep_scaling else "its layer standardises its weights, where none can be folded"
            )
            raise ValueError(
                f"{other.where}: {own!r:.160} has rank {b.rank} and scaling {b.scaling:g}, in {first.where} "
                f"{factor.rank} and {factor.scaling:g}; they have to be equal: {why}."
            )
    for own, shape in first.tensors.shapes.items():
        if own not in first.tensors.factors and shape != other.tensors.shapes[own]:
            raise ValueError(
                f"tensor {own!r:.160} has shape {shape} in {first.where} and {other.tensors.shapes[own]} in "
                f"{other.where}; import adapters of the same heads."
            )


class RowWriter:
    """Puts the tensors of an adapter into a row of a layout: ranks are padded, scalings go into B and its bias.

    Args:
        layout ([`ParameterLayout`]): Of a network with the common configuration.
        common ([`AdapterTensors`]): What peft builds by it.
    """

    def __init__(self, layout: ParameterLayout, common: AdapterTensors):
        self._layout, self._common = layout, common

    def put(self, row: torch.Tensor, values: Mapping[str, torch.Tensor], source: AdapterTensors) -> None:
        """Fill a row `(D,)` of zeros by tensors of the names in the network."""
        for spec in self._layout.tensors:
            place = row[spec.offset : spec.offset + spec.numel].view(spec.shape)
            common, own = self._common.factors.get(spec.name), source.factors.get(spec.name)
            if common is None:
                place.copy_(values[spec.name])
            else:
                _put_factor(place, values[spec.name], common, own)


def _put_factor(place: torch.Tensor, value: torch.Tensor, common: Factor, own: Factor) -> None:
    if own.role == "A":
        # Rows of a group stay together: the group's B multiplies them.
        grouped = place.view(common.groups, -1, *place.shape[1:])
        grouped[:, : own.rank // own.groups].copy_(value.view(own.groups, -1, *value.shape[1:]))
        return
    target = place[:, : own.rank // own.groups] if own.role == "B" else place
    if own.scaling == common.scaling:
        target.copy_(value)
    else:
        # In double precision: one rounding, that of the row.
        target.copy_(value.double() * (own.scaling / common.scaling))
