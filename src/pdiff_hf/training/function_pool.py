"""Inputs on which the networks that a functional autoencoder writes are compared with what they are to compute."""

from __future__ import annotations

from typing import Protocol

import torch

from ..models.function_encoder import FunctionEncoder
from ..models.functions import NetworkFunctions
from ..models.kinds import AutoencoderFunctionalConfig
from ..models.normalizer import BLOCK_VALUES
from ..wording import setting
from .batches import upload

# Inputs that each of those of a step is chosen among, at most.
CANDIDATES = 4
# Inputs on which all networks agree are drawn by this share of the mean.
LEAST_TELLING = 0.01


class Probes(Protocol):
    """Where inputs come from: see `pdiff_hf.tasks.probes.ProbeSource`."""

    class_labels: torch.Tensor | None

    def draw(self, num: int, seed: int) -> torch.Tensor:
        """Inputs `(num, …)` on which networks differ."""

    def labelled(self, num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training examples `(num, …)` and their labels `(num,)`."""


class FunctionPool:
    """Inputs with what all networks compute on them, from which those of some steps are drawn.

    How likely an input is drawn is the variance of the networks' probabilities on it: where all agree, there is
    nothing to tell them apart by.

    Args:
        functions ([`NetworkFunctions`]): Of the base network.
        vectors (`torch.Tensor` of shape `(K, D)`): Of the networks.
        probes ([`Probes`]): Where inputs come from.
        config ([`AutoencoderFunctionalConfig`]): How many inputs, and how much memory they may take.
        seed (`int`): Of the inputs.
        encoder ([`FunctionEncoder`]): What it compares of functions is kept of them.
    """

    def __init__(
        self,
        functions: NetworkFunctions,
        vectors: torch.Tensor,
        probes: Probes,
        config: AutoencoderFunctionalConfig,
        seed: int,
        encoder: FunctionEncoder,
    ):
        size = functions.batch_size
        first = functions.prefix(probes.draw(size, seed))
        bytes_per_input = 4 * len(vectors) * functions.num_outputs + sum(part.nbytes for part in first) / size
        num = int(min(config.pool_size, config.max_pool_mb * 2**20 // bytes_per_input)) // size * size
        if num < size:
            raise ValueError(
                f"expected memory for the outputs of {len(vectors)} networks on inputs_per_step={size} inputs, found "
                f"max_pool_mb={config.max_pool_mb}; give "
                f"{setting('autoencoder.max_pool_mb', str(-(-int(size * bytes_per_input) // 2**20)))} or more, or "
                f"fewer inputs ({setting('autoencoder.inputs_per_step')})."
            )
        self._labelled = None
        if config.task_loss:
            inputs, labels = probes.labelled(num, seed)
            self._labelled = (self._activations(functions, inputs), labels.to(functions.device))
        if config.function_loss:
            inputs = probes.draw(num, seed)
            self._inputs = self._activations(functions, inputs)
            rows = max(1, BLOCK_VALUES // functions.layout.num_parameters)
            starts = range(0, len(vectors), rows)
            # By inputs, so that those of a step are read in few pieces.
            self._functions = torch.empty(num, len(vectors), functions.num_outputs, device=functions.device)
            for start in starts:
                part = encoder.values(functions.of(vectors[start : start + rows], inputs))
                self._functions[:, start : start + rows] = part.transpose(0, 1)
            parts = self._functions.split(size)
            if not encoder.probabilities:
                parts = (part.softmax(-1) for part in parts)
            telling = torch.cat([part.var(1).sum(-1) for part in parts])
            self._telling = (telling + telling.mean() * LEAST_TELLING).cpu()

    @staticmethod
    def _activations(functions: NetworkFunctions, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [functions.prefix(part) for part in inputs.split(functions.batch_size)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def draw(self, num: int, generator: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Activations of `num` inputs, and what is compared of the functions `(num, K, classes)` on them."""
        candidates = torch.randperm(len(self._telling), generator=generator)[: CANDIDATES * num]
        index = candidates[self._telling[candidates].multinomial(num, generator=generator)]
        (index,) = upload([index], self._functions.device)
        return tuple(part[index] for part in self._inputs), self._functions[index]

    def draw_labelled(self, num: int, generator: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Activations of `num` training examples, and their labels `(num,)`."""
        activations, labels = self._labelled
        (index,) = upload([torch.randperm(len(labels), generator=generator)[:num]], labels.device)
        return tuple(part[index] for part in activations), labels[index]
