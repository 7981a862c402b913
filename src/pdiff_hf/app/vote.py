"""How networks vote on one example, and how far they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Vote:
    """What `B` networks say of one example with `C` classes.

    Args:
        counts (`list[int]`): Votes of every class: of each network, the class that it holds most probable.
        mean (`list[float]`): The mean of their probabilities.
        winner (`int`): The class with most votes; of several, the most probable one by the mean.
        agreement (`float`): The share of networks that vote for it.
        uncertainty (`float`): Entropy of the mean, in bits: 0 when all are sure of the same class, log2 C at most.
        disagreement (`float`): That part of it that comes from differences between networks: the entropy of the mean
            minus the mean of the entropies (mutual information; Houlsby et al. 2011, arXiv 1112.5745), in bits.
    """

    counts: list[int]
    mean: list[float]
    winner: int
    agreement: float
    uncertainty: float
    disagreement: float

    @property
    def size(self) -> int:
        """Number of networks."""
        return sum(self.counts)


def take_vote(probabilities: torch.Tensor) -> Vote:
    """The vote of networks by their probabilities `(B, C)`; those with values that are not finite do not vote.

    Raises:
        ValueError: no network is left.
    """
    kept = probabilities[probabilities.isfinite().all(1)].double()
    if not len(kept):
        raise ValueError("no network gives an answer that is finite.")
    counts = torch.bincount(kept.argmax(1), minlength=kept.shape[1])
    mean = kept.mean(0)
    winner = int((counts + mean).argmax())
    total = _entropy(mean)
    within = _entropy(kept).mean()
    return Vote(
        counts.tolist(),
        mean.tolist(),
        winner,
        counts[winner].item() / len(kept),
        max(0.0, total.item()),
        max(0.0, (total - within).item()),
    )


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Of the last dimension, in bits."""
    return torch.special.entr(probabilities).sum(-1) / math.log(2)
