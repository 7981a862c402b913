"""Whether the networks of a dataset compute different functions, and how many latents these take."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from ...data.vectors import split_rows
from ...models.auto import AUTOENCODERS, DENOISER
from ...models.function_encoder import SAME_FUNCTION, explained_shares
from ..evaluator import ParameterEvaluator
from ..population import centred, choose_inputs, pair_disagreement
from .geometry import ROUNDING, linear_explained_variances

FUNCTIONAL = AUTOENCODERS["functional"]()

# Networks and examples of which functions are compared: 500 ResNet-18 take 20 s.
MAX_ROWS, MAX_IMAGES = 500, 1000
# Consecutive checkpoints of a run that differ by no more than this part of what any two do are places on a path.
MAX_STEP_SHARE = 0.25
# Latents may miss this part of what tells a network from its nearest one. Measured: it gives what was chosen by hand
# for the zoos of digits and Fashion-MNIST, 128, and twice that for the digits' populations.
MAX_MISSED = 0.08


def functional_diversity(
    vectors: torch.Tensor, runs: Sequence[Sequence[int]], evaluator: ParameterEvaluator, generator: torch.Generator
) -> dict | None:
    """How differently networks `(K, D)` answer on examples, and along how many components their functions vary.

    A function is the logits on these examples less their mean over the classes. Networks are up to 500, evenly spaced;
    `runs` are the rows of every run in the order of their time, where it is known.

    Returns:
        `dict`, *optional*: `num_rows`, `num_images`; `disagreement` and `agreement` of two networks, mean shares of
        the examples; `steps`, the disagreement of consecutive rows of a run (`None` where there are none);
        `num_components_90`, `num_components_99` of the functions' variance; `num_train`, `num_heldout` and `heldout`,
        the share of held-out rows' functions that components of the others explain, by their number;
        `latent_channels` that the functional autoencoder takes, `None` without held-out rows or different functions;
        and `kind`: `"one_function"`, `"path"` or `"diverse"`. `None` where fewer than two networks have finite
        outputs.
    """
    rows = torch.linspace(0, len(vectors) - 1, min(len(vectors), MAX_ROWS), dtype=torch.float64).round().long()
    evaluator = evaluator.reordered(torch.randperm(len(evaluator.labels), generator=generator))
    num_images = min(MAX_IMAGES, len(evaluator.labels))
    inputs = choose_inputs(num_images, evaluator.num_classes, len(rows))
    output = evaluator.predict(vectors[rows], num_images, keep=inputs)
    kept = output.logits.flatten(1).isfinite().all(1)
    rows, output = rows[kept], output.take(kept)
    if len(rows) < 2:
        return None
    answers = pair_disagreement(output.predictions, output.weights[output.population])
    disagreement = answers.sum().item() / (len(rows) * (len(rows) - 1))
    place = {row: index for index, row in enumerate(rows.tolist())}
    known = [[place[row] for row in run if row in place] for run in runs]
    steps = [answers[first, second] for run in known for first, second in pairwise(run)]

    functions = centred(output).double()
    deviations = functions - functions.mean(0)
    shares = explained_shares(functions).cumsum(0)
    is_one = deviations.square().mean().sqrt() <= SAME_FUNCTION * functions.square().mean().sqrt()
    # Less than one example is no difference that these could show.
    is_one = bool(is_one) or disagreement * num_images < 1
    step = torch.stack(steps).mean().item() if steps else None
    is_path = step is not None and step <= MAX_STEP_SHARE * disagreement
    train, heldout = split_rows(len(rows), FUNCTIONAL.holdout_every)
    return {
        "num_rows": len(rows),
        "num_images": num_images,
        "disagreement": disagreement,
        "agreement": 1 - disagreement,
        "steps": step,
        "num_components_90": int((shares < 0.90).sum()) + 1,
        "num_components_99": int((shares < 0.99).sum()) + 1,
        "num_train": len(train),
        "num_heldout": len(heldout),
        **_latents(deviations @ deviations.T, train, heldout, is_one),
        "kind": "one_function" if is_one else "path" if is_path else "diverse",
    }


def _latents(gram: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, is_one: bool) -> dict:
    """Shares of held-out functions that components explain, by their number, and how many of them to take.

    It is the least power of two that leaves out so little more than all components do for which there are rows: a part
    of half the squared distance to the nearest network, which is what the components have to tell apart.
    """
    nothing = {"heldout": {}, "latent_channels": None}
    if is_one or not len(heldout) or len(train) < 2:
        return nothing
    shares = linear_explained_variances(gram, train, heldout)
    most = min(DENOISER.validate({}).most_latents(len(train)), 0 if shares is None else len(shares))
    if most < 1:
        return nothing
    numbers = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    found = {number: shares[number - 1].item() for number in numbers}
    squares = gram.diagonal()
    apart = squares[heldout, None] + squares[train] - 2 * gram[heldout][:, train]
    between = apart.amin(1).clamp_min(0).mean() / apart.mean().clamp_min(ROUNDING * squares.max())
    enough = found[most] - MAX_MISSED * between.item()
    return {
        "heldout": {str(number): share for number, share in found.items()},
        "latent_channels": next(number for number, share in found.items() if share >= enough),
    }
