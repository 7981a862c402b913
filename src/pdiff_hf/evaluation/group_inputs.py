"""What the groups of networks that an evaluation compares are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapters.gauge import lora_pairs
from ..data.vectors import Vectors
from ..layout import ParameterLayout
from .merging.checkpoints import TaskVectors


@dataclass(frozen=True)
class GroupInputs:
    """What baselines are made of. Networks are tensors, or [`StoredVectors`] where they are large.

    Args:
        originals (`Vectors` of shape `(K, D)`): Rows of the parameter dataset, in the order of the training run.
        layout ([`ParameterLayout`]): Which slice of a vector is which tensor.
        generated (`Vectors` of shape `(G, D)`): Networks out of the pipeline, for their own soups.
        num (`int`): Number of draws, that of the generated networks.
        generator (`torch.Generator`): Source of randomness, of this group alone.
        val_worth (`Callable`, *optional*): What networks `(n, D)` are worth `(n,)` on the validation examples, such as
            their accuracies, for greedy soups.
        draw_latents (`Callable`, *optional*): Draws networks `(n, D)` by number and generator from the Gaussian of
            latents that the denoiser contains.
        noise_latents (`Callable`, *optional*): Draws networks `(n, D)` by number and generator out of noise around the
            latents of originals.
        aligned (`Vectors` of shape `(K, D)`, *optional*): The originals after weight matching.
        is_zoo (`bool`, *optional*, defaults to `False`): The originals are independent networks, not a trajectory.
        start (`torch.Tensor` of shape `(1, D)`, *optional*): Where all trainings of the originals began, if that is
            known: task vectors are differences from it, and else from the mean.
        has_peft (`bool`, *optional*, defaults to `False`): The library that has parts of TIES and DARE is there.
        chosen (`dict`, *optional*): Where a group says what was chosen for it on the validation examples.
    """

    originals: Vectors
    generated: Vectors
    layout: ParameterLayout
    num: int
    generator: torch.Generator
    val_worth: Callable[[Vectors], torch.Tensor] | None = None
    draw_latents: Callable[[int, torch.Generator], Vectors] | None = None
    noise_latents: Callable[[int, torch.Generator], Vectors] | None = None
    aligned: Vectors | None = None
    is_zoo: bool = False
    start: torch.Tensor | None = None
    has_peft: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> set[str]:
        """What a group may need of it and finds; `plain` weights are no factors of adapters, which multiply."""
        given = {key for key, value in vars(self).items() if value is not None and value is not False}
        return given if lora_pairs(self.layout) else {*given, "plain"}

    @property
    def task_vectors(self) -> TaskVectors:
        """The originals as differences from where they began."""
        return TaskVectors(self.originals, self.layout, self.start)

    def choose(self, found: tuple[Vectors, dict[str, Any]]) -> Vectors:
        """Keep what was chosen of networks, and give these."""
        networks, chosen = found
        self.chosen.update(chosen)
        return networks
