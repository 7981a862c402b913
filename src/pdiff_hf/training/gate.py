"""The gate between the two stages: an autoencoder has to reconstruct what networks do, not only their numbers."""

from __future__ import annotations

import torch

from ..data.vectors import Vectors, empty_vectors
from ..evaluation.reconstruction import explained_variances, poor_kinds, shares_by_kind
from ..evaluation.scores import NetworkEvaluator
from ..models.auto import AUTOENCODERS
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.config import AutoencoderConfig, latent_arguments
from ..results.metric import Metric
from ..results.text import by_kind, percent
from ..wording import setting

# Training rows that are scored beside the held-out ones, for the spread of the originals' scores.
MAX_SCORED_ROWS = 100
# Values of the networks that are evaluated at a time: 256 MB.
MAX_EVALUATED_VALUES = 2**26


class PoorReconstructionError(ValueError):
    """The autoencoder does not pass the gate."""


@torch.no_grad()
def reconstruct(autoencoder: ParameterAutoencoderMixin, vectors: Vectors) -> Vectors:
    """Encode and decode raw vectors `(B, D)`."""
    reconstructed = empty_vectors(len(vectors), vectors)
    for rows, columns, block in autoencoder.reconstruct_blocks(vectors):
        reconstructed[rows, columns] = block.to(vectors.device)
    return reconstructed


def measure_reconstruction(
    autoencoder: ParameterAutoencoderMixin,
    train_vectors: torch.Tensor,
    heldout_vectors: torch.Tensor,
    evaluator: NetworkEvaluator | None = None,
    columns: torch.Tensor | None = None,
    population: torch.Tensor | None = None,
) -> dict:
    """Measure decode(encode(x)) on training and held-out raw rows, in bounded memory.

    Rows `(K, D)` and `(H, D)` are tensors or [`StoredVectors`], the autoencoder is in eval mode, `columns` are the
    kinds of tensors, see [`explained_variances`], and `population` `(H,)` tells of the held-out rows by which labels
    they are judged, where there are several.

    Returns:
        `dict`: the figures of [`explained_variances`], and with an evaluator, on validation examples,
        `accuracy_original`, `accuracy_reconstructed`, `accuracy_drop` (fractions, means over the held-out rows); of
        another metric what [`measure_scores`] gives.
    """
    report = {"num_train": len(train_vectors), "num_heldout": len(heldout_vectors)}
    report |= explained_variances(autoencoder, train_vectors, heldout_vectors, columns)
    if evaluator is not None:
        size = max(1, MAX_EVALUATED_VALUES // heldout_vectors.shape[1])
        parts = [slice(start, start + size) for start in range(0, len(heldout_vectors), size)]
        known = [{} if population is None else {"population": population[part]} for part in parts]
        given = [(heldout_vectors[part], own) for part, own in zip(parts, known, strict=True)]
        original = torch.cat([evaluator.score(part, **own) for part, own in given])
        decoded = torch.cat([evaluator.score(reconstruct(autoencoder, part), **own) for part, own in given])
        if not evaluator.metric.is_accuracy:
            return report | measure_scores(original, decoded, train_vectors, evaluator)
        means = torch.stack([original, decoded]).mean(1).tolist()
        report["accuracy_original"], report["accuracy_reconstructed"] = means
        report["accuracy_drop"] = report["accuracy_original"] - report["accuracy_reconstructed"]
    return report


def measure_scores(
    original: torch.Tensor, decoded: torch.Tensor, train_vectors: torch.Tensor, evaluator: NetworkEvaluator
) -> dict:
    """What reconstruction costs in a score of any unit, in standard deviations of the originals' scores.

    `original` and `decoded` `(H,)` are scores of held-out rows before and after; the standard deviation is that of
    these rows and of up to `MAX_SCORED_ROWS` training rows, evenly spread.

    Returns:
        `dict`: `metric`, `score_original`, `score_reconstructed` (means over the held-out rows), `score_std`, and
        `score_drop`, how much worse reconstructions are in standard deviations, below 0 where they are better; `None`
        where all originals have one score, and these another.
    """
    rows = torch.linspace(0, len(train_vectors) - 1, min(MAX_SCORED_ROWS, len(train_vectors))).round().long()
    size = max(1, MAX_EVALUATED_VALUES // train_vectors.shape[1])
    scores = torch.cat([original, *(evaluator.score(train_vectors[part].cpu()) for part in rows.split(size))])
    spread, metric = scores.double().std().item(), evaluator.metric
    before, after = (values.double().mean().item() for values in (original, decoded))
    worse = metric.worth(before) - metric.worth(after)
    return {
        "metric": metric.model_dump(),
        "score_original": before,
        "score_reconstructed": after,
        "score_std": spread,
        "score_drop": worse / spread if spread > 0 else None if worse > 0 else 0.0,
    }


def check_reconstruction(report: dict, config: AutoencoderConfig) -> None:
    """Raise [`PoorReconstructionError`] with advice when `report` misses the gate of `config`."""
    problems = []
    poor = poor_kinds(report, config.min_explained_variance)
    if poor:
        shares = report["explained_variance"], config.min_explained_variance
        whole, least = (percent(share, digits=1) for share in shares)
        problems.append(
            f"explains {whole} of the held-out variance ({by_kind(shares_by_kind(report))}), expected at least "
            f"{least} of each kind of tensor"
        )
    if "accuracy_drop" in report and not report["accuracy_drop"] <= config.max_accuracy_drop:
        problems.append(
            f"loses {100 * report['accuracy_drop']:.2f} points of accuracy, expected at most "
            f"{100 * config.max_accuracy_drop:.2f}"
        )
    drop = report.get("score_drop", 0.0)
    if drop is None or not drop <= config.max_score_drop:
        metric = Metric.model_validate(report["metric"])
        problems.append(
            f"takes {metric.title} from {report['score_original']:.4g} to {report['score_reconstructed']:.4g}, "
            f"expected at most {config.max_score_drop:g} standard deviations of the originals' "
            f"({report['score_std']:.2g}) worse"
        )
    if not problems or config.allow_poor_reconstruction:
        return
    unseen, seen = shares_by_kind(report), shares_by_kind(report, "train_")
    # What does not vary among the training rows is explained there.
    found = {kind: seen.get(kind, 1.0) for kind in poor or unseen}
    if any(share - unseen[kind] > 0.1 for kind, share in found.items()):
        advice = (
            f"Of the training rows it explains more ({by_kind(found)}), so it lacks data: take more "
            "checkpoints, or those of one run; independently initialised networks are compared by what they compute: "
            f"{setting('autoencoder.kind', 'functional')}. pdiff inspect says more."
        )
    else:
        advice = f"{_larger(config, report['num_train'])}."
    raise PoorReconstructionError(
        f"the autoencoder {' and '.join(problems)}. {advice} To go on all the same: "
        f"{setting('autoencoder.allow_poor_reconstruction', 'true')}."
    )


def _larger(config: AutoencoderConfig, num_train: int) -> str:
    """What makes an autoencoder of this kind reconstruct better, by its section."""
    ways = []
    if config.optimization is not None:
        ways.append(f"more steps ({setting('autoencoder.steps')}, now {config.optimization.steps})")
    if not config.latents_grow:
        size = config.latent_channels * config.latent_length
        room = not config.has_components or size < num_train - 1
        now = f"{latent_arguments()}, now {config.latent_channels} × {config.latent_length}"
        more = "" if room else f", of which {num_train} training checkpoints have no more"
        ways.append(f"{'more' if room else 'more checkpoints for more'} latent values ({now}{more})")
    if config.optimization is not None:
        kinds = {kind: section() for kind, section in AUTOENCODERS.items()}
        exact = [kind for kind, other in kinds.items() if other.has_components and other.optimization is None]
        ways += [f"a closed form ({setting('autoencoder.kind', kind)})" for kind in exact]
    text = ", or ".join(ways) or "more checkpoints"
    return f"Try {text}"
