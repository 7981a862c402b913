"""What networks of one task have different from each other, from trained ones, and from those that were seen."""

from __future__ import annotations

import torch

from ..outputs import EvaluatorOutput
from ..population import centred, nearest_side
from ..similarity import squared_distances


def disagreement(predictions: torch.Tensor, num_classes: int) -> float:
    """Share of examples on which two networks of a task say different things, of predictions `(T, n, N)`; n > 1."""
    n = predictions.shape[1]
    counts = torch.stack([(predictions == label).sum(1) for label in range(num_classes)]).double()
    alike = (counts * (counts - 1)).sum(0) / (n * (n - 1))
    return 1 - alike.mean().item()


def ensemble_accuracies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Accuracies `(T,)` of the averaged probabilities of every task's n networks.

    Args:
        logits (`torch.Tensor` of shape `(T, n, N, classes)`): On the examples.
        targets (`torch.Tensor` of shape `(T, N)`): Labels of the tasks.
    """
    answers = logits.double().softmax(-1).mean(1).argmax(-1)
    return (answers == targets).double().mean(1)


class SeenFunctions:
    """What the networks seen and those trained on unseen tasks compute, for the distance of others to both.

    Args:
        seen, trained ([`EvaluatorOutput`]): With logits on the same examples.
    """

    def __init__(self, seen: EvaluatorOutput, trained: EvaluatorOutput, seed: int = 0):
        self._seen, self._trained, self._seed = centred(seen), centred(trained), seed
        self._apart = _distances(self._trained, self._seen).amin(1)

    def measure(self, output: EvaluatorOutput, is_trained: bool = False) -> dict[str, float | None]:
        """`near`, `side` and `copies` of networks, as [`Population`] has them.

        Held-out originals are the networks trained on the unseen tasks; with `is_trained`, these are measured.
        """
        functions = self._trained if is_trained else centred(output)
        to_seen, to_trained = (_distances(functions, others) for others in (self._seen, self._trained))
        if is_trained:
            to_trained.fill_diagonal_(torch.inf)
        nearest, generator = to_seen.amin(1), torch.Generator().manual_seed(self._seed)
        side, _ = nearest_side(to_seen, to_trained, generator, is_trained)
        near = nearest.mean() / self._apart.mean()
        copies = (nearest < self._apart.min() / 2).double().mean().item()
        return {"near": near.item() if near.isfinite() else None, "side": side, "copies": copies}


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return squared_distances(a, b).clamp(min=0).sqrt()
