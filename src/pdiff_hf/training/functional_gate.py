"""The gate of what compares functions: a reconstructed network has to be like its own original, not like any."""

from __future__ import annotations

import torch

from ..evaluation.evaluator import ParameterEvaluator
from ..evaluation.intervals import sample_mean_interval
from ..models.autoencoder_base import ParameterAutoencoderMixin
from ..models.autoencoder_functional import AutoencoderFunctional
from ..models.config import AutoencoderConfig
from ..models.functions import analogies
from ..wording import setting
from .gate import MAX_EVALUATED_VALUES, PoorReconstructionError, reconstruct

# Networks of which pairs are compared, the largest gain, and in how many halvings it is found.
NUM_DRAWS, MAX_GAIN, GAIN_STEPS = 100, 2.0, 6
# Values of the networks that are computed at a time: 32 MB.
VALUES_AT_ONCE = MAX_EVALUATED_VALUES // 8
# Share of examples by which networks written for analogies may be less like what was wanted than those written for
# networks are: a decoder that has learned nothing but the tasks seen loses 13 points on sets larger than those.
MAX_ANALOGIES_DROP = 0.05
# Training rows whose reconstruction is measured, evenly spaced.
MAX_TRAIN_ROWS = 100


def measure_functions(
    autoencoder: ParameterAutoencoderMixin,
    train_vectors: torch.Tensor,
    heldout_vectors: torch.Tensor,
    evaluator: ParameterEvaluator,
    population: torch.Tensor | None = None,
) -> dict:
    """Measure what decode(encode(x)) computes on validation examples, for training and held-out raw rows.

    Rows `(K, D)` and `(H, D)` are tensors or [`StoredVectors`], the autoencoder is in eval mode, and `population`
    `(H,)` tells of the held-out ones by which labels they are judged, where there are several.

    Returns:
        `dict`: `explained_variance`, `train_explained_variance`, `1 - Σ(f - f̂)² / Σ(f - f̄)²` over rows, examples and
        classes, f the logits less their mean, or the probabilities where the autoencoder compares these, and f̄ their
        mean over the training rows; of probabilities, `analogies_explained_variance` and `analogies_agreement`, of
        functions that no network has: [`analogies`] of a held-out network and two training ones; `accuracy_original`,
        `accuracy_reconstructed`, `accuracy_drop` (fractions, means over the held-out rows); `agreement_own`, share of
        examples on which a reconstructed held-out network answers as its own original, `agreement_other`, as the other
        held-out originals do, mean over these, `agreement_difference` and its 95 % interval over the rows,
        `agreement_ci95`; `disagreement_ratio`, how often two reconstructed ones answer differently, over how often
        their originals do. `None` where there is one row, or where originals never do.
    """
    train_rows = torch.linspace(0, len(train_vectors) - 1, min(len(train_vectors), MAX_TRAIN_ROWS)).round().long()
    report = {"num_train": len(train_vectors), "num_heldout": len(heldout_vectors), "compares": "functions"}
    train, train_decoded = _functions(evaluator, autoencoder, train_vectors[train_rows])
    mean = train.mean(0)
    report["train_explained_variance"] = _explained(train, train_decoded, mean)
    rows = slice(0, max(2, MAX_EVALUATED_VALUES // heldout_vectors.shape[1]))
    own, decoded = _functions(evaluator, autoencoder, heldout_vectors[rows])
    report["explained_variance"] = _explained(own, decoded, mean)
    if _compares_probabilities(autoencoder):
        vectors = torch.cat([heldout_vectors[rows].cpu(), train_vectors[train_rows].cpu()])
        wanted, written = _analogies(evaluator, autoencoder, vectors, torch.cat([own, train]), len(own))
        report["analogies_explained_variance"] = _explained(wanted, written, mean)
        report["analogies_agreement"] = (wanted.argmax(-1) == written.argmax(-1)).double().mean().item()
    targets = evaluator.targets.cpu()
    answers, decoded_answers = own.argmax(-1), decoded.argmax(-1)
    labels = targets.expand(len(own), -1, -1) if population is None else targets[population[: len(own)], None]
    # Of several populations of which nobody knows the network's, that of the one that it fits best.
    shares = (labels >= 0).double().mean(2)
    accuracies = [
        ((found[:, None] == labels).double().mean(2) / shares).amax(1).mean().item()
        for found in (answers, decoded_answers)
    ]
    report["accuracy_original"], report["accuracy_reconstructed"] = accuracies
    report["accuracy_drop"] = accuracies[0] - accuracies[1]
    agreement = 1 - disagreements(decoded_answers, answers)
    of_own, num = agreement.diagonal(), len(agreement)
    report["agreement_own"] = of_own.mean().item()
    report |= dict.fromkeys(("agreement_other", "agreement_difference", "agreement_ci95", "disagreement_ratio"))
    if num > 1:
        others = (agreement.sum(1) - of_own) / (num - 1)
        report["agreement_other"] = others.mean().item()
        report["agreement_difference"] = (of_own - others).mean().item()
        report["agreement_ci95"] = sample_mean_interval(of_own - others)
        among, decoded_among = map(mean_disagreement, (answers, decoded_answers))
        report["disagreement_ratio"] = decoded_among / among if among else None
    return report


def best_network(evaluator: ParameterEvaluator, vectors: torch.Tensor, population: torch.Tensor | None = None) -> int:
    """The row of raw vectors `(K, D)`, a tensor or [`StoredVectors`], with the least validation loss.

    `population` `(K,)` tells by which labels, where there are several.
    """
    size, losses = max(1, VALUES_AT_ONCE // vectors.shape[1]), []
    for start in range(0, len(vectors), size):
        own = None if population is None else population[start : start + size]
        losses.append(evaluator.nll(vectors[start : start + size], population=own))
    return int(torch.cat(losses).nan_to_num(torch.inf).argmin())


@torch.no_grad()
def match_diversity(
    autoencoder: AutoencoderFunctional, latents: torch.Tensor, seen: torch.Tensor, evaluator: ParameterEvaluator
) -> dict[str, float]:
    """Set the gain of the decoder by which networks drawn differ as often from each other as those seen do.

    What the decoder does not tell apart, its networks lack: they answer alike too often. Latents that are farther from
    their mean by a factor, the gain, make up for it. It is the least from 1 to `MAX_GAIN` for which pairs disagree as
    often as those of networks seen, on the validation examples.

    Args:
        autoencoder ([`AutoencoderFunctional`]): Trained, in eval mode.
        latents (`torch.Tensor` of shape `(B, C·L)`): Drawn from the Gaussian of the seen networks' latents.
        seen (`torch.Tensor` of shape `(S, D)`): Raw parameters of networks seen.
        evaluator ([`ParameterEvaluator`]): On validation examples.

    Returns:
        `dict`: the `gain`, and the shares of examples on which pairs disagree: `seen_disagreement`, and
        `drawn_disagreement` by gain 1.
    """
    # Of large networks, a few at a time.
    size = max(1, VALUES_AT_ONCE // seen.shape[1])

    def drawn(gain: float) -> float:
        autoencoder.decoder.gain.fill_(gain)
        parts = latents.reshape(-1, *autoencoder.latent_shape).split(size)
        return mean_disagreement(torch.cat([evaluator.predictions(autoencoder.decode(part).sample) for part in parts]))

    of_seen = torch.cat([evaluator.predictions(part) for part in seen.split(size)])
    expected, low, high = mean_disagreement(of_seen), 1.0, MAX_GAIN
    report = {"seen_disagreement": expected, "drawn_disagreement": drawn(1.0)}
    if report["drawn_disagreement"] < expected:
        for _ in range(GAIN_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if drawn(middle) < expected else (low, middle)
        low = high
    autoencoder.decoder.gain.fill_(low)
    return {"gain": low, **report}


def mean_disagreement(answers: torch.Tensor) -> float:
    """Mean share of examples on which two of the networks with answers `(B, N)` differ."""
    num = len(answers)
    return disagreements(answers, answers).sum().item() / (num * (num - 1))


def disagreements(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Shares `(A, B)` of the examples on which answers `(A, N)` and `(B, N)` differ."""
    return torch.stack([(row != second).double().mean(1) for row in first])


def check_functions(report: dict, config: AutoencoderConfig) -> None:
    """Raise [`PoorReconstructionError`] with advice when `report` misses the gate of `config`."""
    problems = []
    if not report["explained_variance"] >= config.min_explained_variance:
        problems.append(
            f"explains {report['explained_variance']:.1%} of what held-out networks compute differently, expected at "
            f"least {config.min_explained_variance:.1%}"
        )
    if not report["accuracy_drop"] <= config.max_accuracy_drop:
        problems.append(
            f"loses {100 * report['accuracy_drop']:.2f} points of accuracy, expected at most "
            f"{100 * config.max_accuracy_drop:.2f}"
        )
    if report["agreement_ci95"] is not None and not report["agreement_ci95"][0] > 0:
        problems.append(
            f"gives networks that agree with their own original on {report['agreement_own']:.1%} and with others on "
            f"{report['agreement_other']:.1%} of the examples"
        )
    if report.get("analogies_agreement", 1.0) < report["agreement_own"] - MAX_ANALOGIES_DROP:
        problems.append(
            f"gives networks for tasks that none was trained on which agree with what was wanted on "
            f"{report['analogies_agreement']:.1%} of the examples, and with networks on {report['agreement_own']:.1%}"
        )
    if problems and not config.allow_poor_reconstruction:
        raise PoorReconstructionError(
            f"the autoencoder {' and '.join(problems)}. Try more steps ({setting('autoencoder.steps')}, now "
            f"{config.steps}), more checkpoints (now {report['num_train']} to train on), or fewer latent values "
            f"({setting('autoencoder.latent_channels')}, now {config.latent_channels}). To go on all the same: "
            f"{setting('autoencoder.allow_poor_reconstruction', 'true')}."
        )


def _functions(
    evaluator: ParameterEvaluator, autoencoder: ParameterAutoencoderMixin, vectors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Functions `(B, N, classes)` of raw vectors `(B, D)`, and of what the autoencoder makes of them."""
    found = []
    for part in vectors.split(max(1, VALUES_AT_ONCE // vectors.shape[1])):
        pair = torch.cat([part.cpu(), reconstruct(autoencoder, part).cpu()])
        found.append(_computed(evaluator, autoencoder, pair).chunk(2))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def _computed(
    evaluator: ParameterEvaluator, autoencoder: ParameterAutoencoderMixin, vectors: torch.Tensor
) -> torch.Tensor:
    logits = torch.cat([logits.cpu() for _, logits in evaluator.logits(vectors)])
    return logits.softmax(-1) if _compares_probabilities(autoencoder) else logits - logits.mean(-1, keepdim=True)


def _compares_probabilities(autoencoder: ParameterAutoencoderMixin) -> bool:
    return isinstance(autoencoder, AutoencoderFunctional) and autoencoder.config.probabilities


@torch.no_grad()
def _analogies(
    evaluator: ParameterEvaluator,
    autoencoder: AutoencoderFunctional,
    vectors: torch.Tensor,
    probabilities: torch.Tensor,
    num_first: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `(B, N, classes)` of analogies, and of the networks that are written for them.

    They are of the networks `(K, D)` with `probabilities` `(K, N, classes)`, the first of each one of `num_first`.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(NUM_DRAWS) % num_first
    others = torch.randint(num_first, len(vectors), (NUM_DRAWS, 2), generator=generator)
    rows = torch.cat([first[:, None], others], 1)
    parts = vectors.split(max(1, VALUES_AT_ONCE // vectors.shape[1]))
    on_probes = torch.cat([autoencoder.values(part.to(autoencoder.device)) for part in parts])
    scores = autoencoder.encoder.scores(analogies(on_probes, rows.to(autoencoder.device)))
    blocks = autoencoder.decode_rows(scores.view(-1, *autoencoder.latent_shape))
    written = torch.cat([_computed(evaluator, autoencoder, block) for block in blocks])
    return analogies(probabilities, rows), written


def _explained(functions: torch.Tensor, decoded: torch.Tensor, mean: torch.Tensor) -> float:
    total = (functions - mean).double().square().sum()
    return (1 - (functions - decoded).double().square().sum() / total).item() if total > 0 else 0.0
