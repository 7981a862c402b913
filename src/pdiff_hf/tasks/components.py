"""Principal components of a network's features, fitted to training examples before anything is trained."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ..forward import forward_logits
from ..host_copy import to_device
from ..networks import PrincipalComponents
from .task import Task

# Batches of training examples by which components are fitted.
NUM_BATCHES, BATCH_SIZE = 20, 100


def components_of(model: nn.Module) -> list[PrincipalComponents]:
    """The layers of a network that are fitted, not trained."""
    return [module for module in model.modules() if isinstance(module, PrincipalComponents)]


@torch.no_grad()
def fit_components(task: Task, model: nn.Module) -> None:
    """Fit the components of a network in place, on its device and in eval mode; nothing where it has none.

    Raises:
        ValueError: the features of the training examples do not vary in so many directions.
    """
    layers, device = components_of(model), next(model.parameters()).device
    features: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}
    hooks = [layer.register_forward_pre_hook(lambda own, given: features[own].append(given[0])) for layer in layers]
    try:
        for inputs, _ in itertools.islice(task.batches("train", BATCH_SIZE), NUM_BATCHES if layers else 0):
            forward_logits(model, to_device(inputs, device))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, found in features.items():
        layer.fit(torch.cat(found))
