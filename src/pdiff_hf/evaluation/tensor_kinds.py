"""Weights, biases, norms, running statistics: which kind each tensor of a network is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from ..base_model import BaseModel
from ..layout import ParameterLayout, TensorSpec
from ..selection import is_norm
from ..wrapped import own_buffers, own_modules

KINDS = ("weights", "biases", "norms", "running statistics")


def tensor_kinds(layout: ParameterLayout, base_model: BaseModel | None = None) -> tuple[str, ...]:
    """The kind, one of `KINDS`, of every tensor of a layout, in its order.

    Floating-point buffers are running statistics, and parameters of normalisation layers are norms, their biases
    included. Of the others, vectors called bias are biases and all else is weights. Layers are known by the network
    where a base model can be built (without its weights, and without code that is not trusted), else by the names and
    shapes of their tensors.
    """
    model = None if base_model is None else _without_values(base_model)
    if model is None:
        of_name = {spec.name: spec for spec in layout.tensors}
        return tuple(_kind_by_name(spec, of_name) for spec in layout.tensors)
    norms = {name for name, module in own_modules(model) if is_norm(module)}
    buffers = own_buffers(model)
    return tuple(
        "running statistics" if spec.name in buffers else _kind(spec, spec.name.rpartition(".")[0] in norms)
        for spec in layout.tensors
    )


def column_kinds(layout: ParameterLayout, base_model: BaseModel | None = None) -> torch.Tensor:
    """Index into `KINDS` of every coordinate of a vector, `uint8` `(D,)`, by [`tensor_kinds`]."""
    indices = torch.tensor([KINDS.index(kind) for kind in tensor_kinds(layout, base_model)], dtype=torch.uint8)
    return indices.repeat_interleave(torch.tensor([spec.numel for spec in layout.tensors]))


def _kind(spec: TensorSpec, of_norm: bool) -> str:
    if of_norm:
        return "norms"
    return "biases" if len(spec.shape) <= 1 and "bias" in spec.name.rpartition(".")[2] else "weights"


def _kind_by_name(spec: TensorSpec, of_name: Mapping[str, TensorSpec]) -> str:
    owner, _, leaf = spec.name.rpartition(".")
    if leaf.startswith("running_"):
        return "running statistics"
    if len(spec.shape) > 1:
        return "weights"
    if weight := of_name.get(f"{owner}.weight".removeprefix(".")):
        # A layer that multiplies has a matrix; one with a vector alone scales.
        return _kind(spec, of_norm=len(weight.shape) == 1)
    words = re.split("[^a-z]+", owner.rpartition(".")[2].lower())
    return _kind(spec, of_norm=any(word in ("bn", "ln") or word.endswith("norm") for word in words))


def _without_values(base_model: BaseModel) -> nn.Module | None:
    """The network on the meta device; `None` where it cannot be built there."""
    # Neither read nor fetched: only the layers are looked at.
    bare = replace(base_model, weights=None, sha256=None, repo=None, revision=None)
    if "pretrained" in bare.kwargs:
        bare = replace(bare, kwargs={**bare.kwargs, "pretrained": False})
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            return bare.build()
    except Exception:  # building passes on whatever the code of the network raises
        return None
