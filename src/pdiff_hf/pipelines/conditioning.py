"""Conditions of a call of the pipeline, and what they make of the denoiser's predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import ModelMixin

from ..wording import argument

if TYPE_CHECKING:
    from ..models.condition_encoder import ConditionEncoder

# Of whole networks: one condition, or one for each.
Conditions = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Guidance:
    """How the denoiser is asked: unconditioned + scale · (conditioned - unconditioned).

    Source: Ho and Salimans 2022, arXiv 2207.12598; scale = 1 + w there. Only what has a weight is computed.

    Args:
        embeds (`torch.Tensor` of shape `(1, n)` or `(B, n)`, *optional*): Class labels of the conditioned prediction.
        negative_embeds (`torch.Tensor` of shape `(1, n)` or `(B, n)`, *optional*): Of the unconditioned one; the
            denoiser's null vector by default.
        scale (`float`, *optional*, defaults to 1.0): 0 leaves the condition out.
    """

    embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None
    scale: float = 1.0
    # What the denoiser's regression expects of the conditions, the same at every step.
    class_means: torch.Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Guidance:
        """The same on a device."""
        moved = (None if part is None else part.to(device, dtype) for part in (self.embeds, self.negative_embeds))
        return Guidance(*moved, self.scale)

    def rows(self, rows: torch.Tensor) -> Guidance:
        """That of some networks."""
        parts = (self.embeds, self.negative_embeds)
        return Guidance(*(part[rows] if part is not None and len(part) > 1 else part for part in parts), self.scale)

    def prepared(self, unet: ModelMixin) -> Guidance:
        """The same for many steps of a denoiser: what does not change is computed once."""
        if self.scale != 1 or self.embeds is None or getattr(unet, "regression", None) is None:
            return self
        return replace(self, class_means=unet.regression(self.embeds))

    def predict(self, unet: ModelMixin, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction of a denoiser for noisy latents `(B, C, L)`, in float32."""
        embeds = self.embeds if self.scale else self.negative_embeds
        if embeds is None:
            return unet(sample, timestep, return_dict=False)[0].float()
        embeds = embeds.expand(len(sample), -1)
        if self.scale in (0, 1):
            told = {} if self.class_means is None else {"class_means": self.class_means.expand(len(sample), -1)}
            return unet(sample, timestep, class_labels=embeds, return_dict=False, **told)[0].float()
        negative, dropped = self.negative_embeds, None
        if negative is None:
            negative, dropped = embeds, torch.arange(2, device=sample.device).repeat_interleave(len(sample)).bool()
        labels = torch.cat([embeds, negative.expand_as(embeds)])
        both = unet(sample.repeat(2, 1, 1), timestep, class_labels=labels, force_drop_ids=dropped, return_dict=False)
        conditioned, unconditioned = both[0].float().chunk(2)
        return torch.lerp(unconditioned, conditioned, self.scale)

    def expected(self, unet: ModelMixin, mean: torch.Tensor) -> torch.Tensor:
        """Where networks of the condition are expected `(1 or B, C, L)`, by the denoiser's regression if it has one.

        `mean` `(C, L)` is that of all networks.
        """
        if getattr(unet, "regression", None) is None:
            return mean
        unconditioned = mean
        if self.negative_embeds is not None:
            unconditioned = unet.expected(self.negative_embeds).view(-1, *mean.shape)
        if self.embeds is None:
            return unconditioned
        return torch.lerp(unconditioned, unet.expected(self.embeds).view(-1, *mean.shape), self.scale)


def is_conditional(unet: ModelMixin) -> bool:
    """Whether a denoiser takes `class_labels`."""
    return any(unet.config.get(key) is not None for key in ("class_embed_type", "num_class_embeds"))


def check_components(unet: ModelMixin, encoder: ConditionEncoder | None) -> None:
    """Raise `ValueError` for a denoiser and a condition encoder that do not belong together."""
    if encoder is None and not is_conditional(unet):
        return
    takes = unet.config.get("projection_class_embeddings_input_dim")
    gives = None if encoder is None else encoder.embed_size
    if takes != gives:
        raise ValueError(
            f"the unet takes conditions of {takes or 0} numbers, the condition_encoder gives {gives or 0}; give those "
            "that were trained together."
        )


def prepare_guidance(
    encoder: ConditionEncoder | None,
    batch_size: int,
    condition: Conditions | None = None,
    condition_embeds: torch.Tensor | None = None,
    negative_condition_embeds: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Guidance:
    """What a call of the pipeline asks of the denoiser; see there for the arguments.

    Raises:
        ValueError: a condition for a pipeline without an encoder or none for one with it, one of another kind, not
            finite, or not one for each of `batch_size` networks; or a scale that is no number from 0 on.
    """
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float, np.number)):
        raise ValueError(f"{argument('guidance_scale')} must be a number, got {guidance_scale!r}.")
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"{argument('guidance_scale')} must be 0 or more and finite, got {guidance_scale}.")
    given = {
        "condition": condition,
        "condition_embeds": condition_embeds,
        "negative_condition_embeds": negative_condition_embeds,
        "guidance_scale": None if guidance_scale == 1 else guidance_scale,
    }
    named = [argument(name) for name, value in given.items() if value is not None]
    if encoder is None:
        if named:
            raise ValueError(f"this pipeline was trained without conditions; leave out {named[0]}.")
        return Guidance()
    if condition is not None and condition_embeds is not None:
        raise ValueError("expected condition or condition_embeds, found both.")
    if condition is None and condition_embeds is None and guidance_scale != 0:
        raise ValueError(
            f"this pipeline draws networks for a condition, {encoder.spec.summary}; give {argument('condition')} "
            f"as {encoder.form}, or {argument('guidance_scale', '0', '0')} for those of all conditions."
        )
    if negative_condition_embeds is not None and guidance_scale == 1:
        raise ValueError("negative_condition_embeds have no weight with guidance_scale=1; give another one.")
    if condition is not None:
        condition_embeds = encode_conditions(encoder, condition)
    for name, embeds in (("conditions", condition_embeds), ("negative_condition_embeds", negative_condition_embeds)):
        if embeds is not None:
            _check_embeds(name, embeds, batch_size, encoder.embed_size)
    return Guidance(condition_embeds, negative_condition_embeds, float(guidance_scale))


def encode_conditions(encoder: ConditionEncoder, condition: Conditions) -> torch.Tensor:
    """One condition or several as class labels `(n, size)`; `ValueError` for what is none, see the encoder."""
    if isinstance(condition, (list, tuple)) and not condition:
        raise ValueError("expected a condition, or one for each network, found an empty list.")
    return encoder.encode(condition if isinstance(condition, (list, tuple)) else [condition])


def describe_conditions(encoder: ConditionEncoder, condition: Conditions) -> dict[str, Any] | list[dict[str, Any]]:
    """One condition or several as JSON."""
    if isinstance(condition, (list, tuple)):
        return [encoder.describe(one) for one in condition]
    return encoder.describe(condition)


def _check_embeds(name: str, embeds: torch.Tensor, batch_size: int, size: int) -> None:
    if not isinstance(embeds, torch.Tensor) or not embeds.is_floating_point():
        found = embeds.dtype if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        raise ValueError(f"{name} must be a floating-point tensor of shape (B, {size}), got {found}.")
    if embeds.ndim != 2 or embeds.shape[1] != size:
        raise ValueError(f"{name} must have shape (B, {size}), got {tuple(embeds.shape)}.")
    if len(embeds) not in (1, batch_size):
        raise ValueError(f"got {len(embeds)} {name} for {batch_size} networks; give one each, or one for all.")
    if embeds.is_meta or not embeds.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
