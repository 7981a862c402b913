"""What adapters do to the outputs of their base: one that does nothing looks like any other."""

from __future__ import annotations

import torch

from ..layout import ParameterLayout
from ..peft_model import called_network
from ..wrapped import unwrap

NUM_INPUTS, NUM_TOKENS = 8, 16
# Adapters whose effect is measured, of many.
NUM_PROBED = 8


@torch.no_grad()
def adapter_effects(model: torch.nn.Module, layout: ParameterLayout, rows: torch.Tensor) -> list[float]:
    """By how much of their spread adapters move the outputs of their base on random inputs.

    Args:
        model (`PeftModel`): With any adapter, which is in it again afterwards.
        layout ([`ParameterLayout`]): Of the adapters.
        rows (`torch.Tensor` of shape `(n, D)`): The adapters.

    Returns:
        `list[float]`: root of the mean squared difference over the base's standard deviation, `n` of them; empty where
        no inputs can be made for the network.
    """
    model = unwrap(model)
    inputs = probe_inputs(model)
    if inputs is None:
        return []
    own, effects = layout.flatten(model), []
    with model.disable_adapter():
        base = outputs_of(model, inputs)
    try:
        for row in rows:
            layout.load_into(model, row)
            difference = outputs_of(model, inputs) - base
            effects.append((difference.square().mean().sqrt() / base.std().clamp_min(1e-12)).item())
    finally:
        layout.load_into(model, own)
    return effects


def outputs_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The first output of a network, float32."""
    network = called_network(model)
    output = network(inputs) if inputs.is_floating_point() else network(input_ids=inputs)
    if not isinstance(output, torch.Tensor):
        output = output["logits"] if "logits" in output else output[0]
    return output.float()


def probe_inputs(model: torch.nn.Module) -> torch.Tensor | None:
    """Random images or token ids for a network with an adapter; `None` where it does not say which it takes."""
    network = called_network(model)
    generator = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype
    config = getattr(network, "config", None)
    if (words := getattr(config, "vocab_size", None)) is not None and not getattr(config, "is_encoder_decoder", False):
        return torch.randint(min(1, words - 1), words, (NUM_INPUTS, NUM_TOKENS), generator=generator)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if size is None and hasattr(network, "pretrained_cfg"):
        channels, *size = getattr(network, "pretrained_cfg", {}).get("input_size", (3, None, None))
        size = getattr(getattr(network, "patch_embed", None), "img_size", None) or size
    if size is None or None in (sides := [size, size] if isinstance(size, int) else list(size)):
        return None
    return torch.randn(NUM_INPUTS, channels, *sides, generator=generator).to(dtype)
