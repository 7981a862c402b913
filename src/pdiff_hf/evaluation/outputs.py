"""What networks do on examples, one by one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from .scores import NetworkScores


@dataclass
class EvaluatorOutput(NetworkScores):
    """What `B` networks do on `N` images.

    Where there are several populations, a network is judged by the labels of the one that it fits best.

    Args:
        right (`torch.Tensor` of shape `(B, N)`, `bool`): Whether a prediction is the label.
        losses (`torch.Tensor` of shape `(B, N)`): Negative log-likelihood of every label, in nats, times its weight.
        ece (`torch.Tensor` of shape `(B,)`): Expected calibration error of the top-1 confidence in 15 equal bins
            (Guo et al. 2017, arXiv 1706.04599), as torchmetrics' `multiclass_calibration_error` computes it.
        predictions (`torch.Tensor` of shape `(B, N)`, `int64`): Predicted classes, -1 where the logits are NaN.
        population (`torch.Tensor` of shape `(B,)`, `int64`): The population of a network, 0 of one.
        logits (`torch.Tensor` of shape `(B, n, classes)`): Of the images of which they are kept.
        weights (`torch.Tensor` of shape `(P, N)`): What an image counts in a population: 1, or 0 where it has no
            label there, and as much more for the others as makes the mean 1.
    """

    right: torch.Tensor
    losses: torch.Tensor
    ece: torch.Tensor
    predictions: torch.Tensor
    population: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.right)

    @property
    def scores(self) -> torch.Tensor:
        """What every image adds to the accuracy `(B, N)`: its weight where the prediction is right, else 0."""
        return self.right * self.weights[self.population]

    @property
    def wrong(self) -> torch.Tensor:
        """Mistakes `(B, N)`, `bool`; none on images without a label."""
        return ~self.right & (self.weights[self.population] > 0)

    @property
    def accuracy(self) -> torch.Tensor:
        """Fractions of right predictions `(B,)`, the scores."""
        return self.score

    @property
    def nll(self) -> torch.Tensor:
        """Mean negative log-likelihoods of the labels `(B,)`, in nats."""
        return self.losses.mean(1)

    @property
    def ties(self) -> torch.Tensor:
        """Of networks that are equally accurate, the one with the lowest NLL is better."""
        return self.nll

    def take(self, rows: torch.Tensor) -> EvaluatorOutput:
        """That of some of the networks."""
        names = [field.name for field in fields(self) if field.name != "weights"]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})
