"""What networks do on examples, one by one."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class EvaluatorOutput:
    """Metrics of `B` networks on `N` images.

    Args:
        accuracy (`torch.Tensor` of shape `(B,)`): Fraction of right predictions.
        nll (`torch.Tensor` of shape `(B,)`): Mean negative log-likelihood of the labels, in nats.
        ece (`torch.Tensor` of shape `(B,)`): Expected calibration error of the top-1 confidence in 15 equal bins
            (Guo et al. 2017, arXiv 1706.04599), as torchmetrics' `multiclass_calibration_error` computes it.
        predictions (`torch.Tensor` of shape `(B, N)`, `int64`): Predicted classes, -1 where the logits are NaN.
        losses (`torch.Tensor` of shape `(B, N)`): Negative log-likelihood of every label, in nats.
        right (`torch.Tensor` of shape `(B, N)`, `bool`): Whether a prediction is the label.
        population (`torch.Tensor` of shape `(B,)`, `int64`): Whose labels these are: of several populations, those of
            the one that the network fits best; 0 of one.
        logits (`torch.Tensor` of shape `(B, n, classes)`): Of the images of which they are kept.
    """

    accuracy: torch.Tensor
    nll: torch.Tensor
    ece: torch.Tensor
    predictions: torch.Tensor
    losses: torch.Tensor
    right: torch.Tensor
    population: torch.Tensor
    logits: torch.Tensor

    def __len__(self) -> int:
        return len(self.accuracy)

    def take(self, rows: torch.Tensor) -> EvaluatorOutput:
        """That of some of the networks."""
        return EvaluatorOutput(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
