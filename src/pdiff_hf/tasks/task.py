"""Tasks: labelled examples in three disjoint splits, ready for a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from ..hub.snapshot import without_paths
from ..machine import free_memory
from .config import SplitConfig
from .examples import Examples
from .splits import Split

# Of what a training keeps in the memory of the machine; those for evaluation are always kept.
MAX_CACHE_BYTES = 2 * 2**30


def cache_bytes(device: torch.device) -> int:
    """How much a training may keep on a device: half of what is free on an accelerator."""
    return MAX_CACHE_BYTES if device.type == "cpu" else free_memory(device) // 2


class Task(ABC):
    """Labelled examples of a classification in three disjoint splits.

    Collection, the gate of the autoencoder, evaluation and generation know their data by this interface alone. A kind
    of task reads its dataset in `__init__` and prepares inputs in `_prepare`.

    Attributes:
        noun (`str`): What the examples are, in the plural: `"images"` or `"texts"`.
        config ([`SplitConfig`]): The configuration with nothing about the inputs left open.
        class_names (`list[str]`): Names of the classes.
    """

    noun: ClassVar[str]
    # Examples to choose networks on are others than those of what is reported.
    has_splits: ClassVar[bool] = True
    config: SplitConfig
    class_names: list[str]

    def __init__(self) -> None:
        self._rows: dict[Split, datasets.Dataset] = {}
        self._labels: dict[Split, torch.Tensor] = {}
        self._arrays: dict[Split, torch.Tensor] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def is_augmented(self) -> bool:
        """Whether training inputs change from epoch to epoch."""
        return False

    @property
    @abstractmethod
    def bytes_per_example(self) -> int:
        """Memory of one prepared input."""

    @abstractmethod
    def _prepare(self, split: Split) -> torch.Tensor:
        """Inputs `(N, …)` of all examples of a split, as they are for evaluation."""

    def arrays(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """All inputs of a split as they are for evaluation, kept in memory, and their labels.

        Inputs are images `(N, C, H, W)` float32 or texts `(N, L)` int64, labels are `(N,)` int64.
        """
        if split not in self._arrays:
            self._arrays[split] = self._prepare(split)
        return self._arrays[split], self.labels(split)

    def labels(self, split: Split) -> torch.Tensor:
        """All labels `(N,)` of a split."""
        return self._labels[split]

    def examples(self, split: Split, device: torch.device | str) -> Examples:
        """The examples of a split on the device of a training, which are freed with the object."""
        return Examples(self, split, torch.device(device))

    def keep(self, split: Split, device: torch.device) -> torch.Tensor | None:
        """All inputs of a split on a device as they are stored; `None` where they need too much or always change."""
        inputs, _ = self.arrays(split)
        return inputs.to(device) if device.type == "cpu" or inputs.nbytes <= cache_bytes(device) else None

    def finish(self, stored: torch.Tensor) -> torch.Tensor:
        """Inputs of what is stored of them, on the same device."""
        return stored

    def load(self, split: Split, indices: torch.Tensor, seed: tuple[int, int]) -> Iterator[torch.Tensor]:
        """What is stored of the inputs at the positions of every batch; `seed` is what augmentation draws by."""
        inputs, _ = self.arrays(split)
        return (inputs[index] for index in indices)

    def batch_indices(
        self,
        split: Split = "train",
        batch_size: int = 128,
        seed: int = 0,
        epoch: int = 0,
        among: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positions `(S, B)` of the examples of every batch, shuffled by `(seed, epoch)`; `among` some `(n,)` or all.

        An incomplete last batch is left out, unless it is the only one.
        """
        num = len(self._labels[split]) if among is None else len(among)
        size = min(batch_size, num)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num))[: num // size * size]
        return (order if among is None else among[order]).view(-1, size)

    def batches(
        self,
        split: Split = "train",
        batch_size: int = 128,
        seed: int = 0,
        epoch: int = 0,
        among: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of batches of inputs `(B, …)` and labels `(B,)`; only `train` is augmented.

        Every `(seed, epoch)` has its own order, that of `batch_indices`, and augmentation, always the same.
        """
        examples = self.examples(split, "cpu")
        batches = examples.batches(batch_size, seed, epoch, among)
        yield from ((examples.inputs(*batch), examples.labels[batch[0]]) for batch in batches)

    def describe(self) -> dict[str, Any]:
        """Everything that is needed to prepare other inputs in the same way, as JSON; of folders only their names."""
        config = without_paths(self.config.model_dump(mode="json", exclude={"num_workers"}))
        sizes = {f"num_{split}": len(labels) for split, labels in self._labels.items()}
        return {**config, **sizes, "num_classes": self.num_classes, "class_names": self.class_names}
