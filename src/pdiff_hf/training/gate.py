"""The gate between the two stages: does the autoencoder reconstruct networks, or only numbers?"""

from __future__ import annotations

import torch

from ..evaluation.evaluator import ParameterEvaluator
from ..models import AutoencoderPCA, AutoencoderPDiff
from .config import AutoencoderConfig


class PoorReconstructionError(ValueError):
    """The autoencoder does not pass the gate."""


@torch.no_grad()
def reconstruct(
    autoencoder: AutoencoderPDiff | AutoencoderPCA, vectors: torch.Tensor, chunk: int = 64
) -> torch.Tensor:
    """Encode and decode raw vectors `(B, D)` in chunks."""
    device = autoencoder.device
    chunks = [autoencoder.decode(autoencoder.encode(part.to(device)).latents).sample for part in vectors.split(chunk)]
    return torch.cat(chunks).to(vectors.device)


def measure_reconstruction(
    autoencoder: AutoencoderPDiff | AutoencoderPCA,
    train_vectors: torch.Tensor,
    heldout_vectors: torch.Tensor,
    evaluator: ParameterEvaluator | None = None,
) -> dict:
    """Measure decode(encode(x)) on training and held-out rows.

    Explained variance is `1 - Σ(x - x̂)² / Σ(x - x̄)²` over all rows and coordinates, x̄ the mean of the training rows,
    in parameter units (`log` tensors in log units).

    Args:
        autoencoder: A trained autoencoder in eval mode.
        train_vectors (`torch.Tensor` of shape `(K, D)`), heldout_vectors (`torch.Tensor` of shape `(H, D)`): Raw rows.
        evaluator ([`ParameterEvaluator`], *optional*): On validation images; without it no accuracies are measured.

    Returns:
        `dict`: `explained_variance`, `train_explained_variance`, and with an evaluator `accuracy_original`,
        `accuracy_reconstructed`, `accuracy_drop` (fractions, means over the held-out rows).
    """
    transform = autoencoder.normalizer.transform
    mean = transform(train_vectors).mean(0)
    report = {"num_train": len(train_vectors), "num_heldout": len(heldout_vectors)}
    for prefix, rows in (("train_", train_vectors), ("", heldout_vectors)):
        reconstructed = reconstruct(autoencoder, rows)
        residual = (transform(reconstructed) - transform(rows)).double().square().sum()
        total = (transform(rows) - mean).double().square().sum()
        # All rows equal: nothing to explain, and an exact copy explains it.
        report[f"{prefix}explained_variance"] = 1 - (residual / total).item() if total > 0 else float(residual == 0)
    if evaluator is not None:
        report["accuracy_original"] = evaluator.accuracy(heldout_vectors).mean().item()
        report["accuracy_reconstructed"] = evaluator.accuracy(reconstructed).mean().item()
        report["accuracy_drop"] = report["accuracy_original"] - report["accuracy_reconstructed"]
    return report


def check_reconstruction(report: dict, config: AutoencoderConfig) -> None:
    """Raise [`PoorReconstructionError`] with advice when `report` misses the gate of `config`."""
    problems = []
    if not report["explained_variance"] >= config.min_explained_variance:
        problems.append(
            f"explains {report['explained_variance']:.1%} of the held-out variance, expected at least "
            f"{config.min_explained_variance:.1%}"
        )
    if "accuracy_drop" in report and not report["accuracy_drop"] <= config.max_accuracy_drop:
        problems.append(
            f"loses {100 * report['accuracy_drop']:.2f} points of accuracy, expected at most "
            f"{100 * config.max_accuracy_drop:.2f}"
        )
    if not problems or config.allow_poor_reconstruction:
        return
    if report["train_explained_variance"] - report["explained_variance"] > 0.1:
        advice = (
            f"It explains {report['train_explained_variance']:.1%} of the training rows, so it lacks data: collect "
            "more checkpoints, or checkpoints of one run (independently initialised networks do not reconstruct)."
        )
    else:
        advice = "Raise autoencoder.steps, latent_channels × latent_length, or use autoencoder.kind=pca."
    raise PoorReconstructionError(
        f"the autoencoder {' and '.join(problems)}. {advice} To go on all the same: allow_poor_reconstruction."
    )
