"""The best of many networks on validation examples, without evaluating all of them on all examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from .evaluator import CHUNK_BYTES, ParameterEvaluator
from .scores import NetworkEvaluator

# Networks that are evaluated on all examples first, to find the examples on which networks differ.
NUM_PILOTS = 12
# Shares of the networks and of the examples at every rung: 1 000 networks cost 0.122 of evaluating all, with pilots.
RUNGS = ((1.0, 1 / 20), (0.15, 1 / 5), (0.03, 1.0))
MIN_FINALISTS = 16


class Vectors(Protocol):
    """A tensor `(B, D)`, or what gives one `(b, D)` for a tensor `(b,)` of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor: ...


@dataclass
class Choice:
    """What [`choose_networks`] has chosen.

    Args:
        rows (`torch.Tensor` of shape `(top,)`): Positions among the networks, the best first.
        vectors (`torch.Tensor` of shape `(top, D)`): The chosen networks.
        score (`torch.Tensor` of shape `(top,)`): On all examples, such as accuracies. The best of many are lucky too:
            expect worse.
        ties (`torch.Tensor` of shape `(top,)`): What decides between equal scores: of accuracies the NLL, in nats.
        num_pilots (`int`): Networks that were evaluated on all examples for their order.
        rungs (`list[tuple[int, int]]`): Numbers of networks and of examples of every rung.
        num_dropped (`int`): Networks with values or outputs that are not finite.
    """

    rows: torch.Tensor
    vectors: torch.Tensor
    score: torch.Tensor
    ties: torch.Tensor
    num_pilots: int
    rungs: list[tuple[int, int]]
    num_dropped: int


def choose_networks(evaluator: NetworkEvaluator, vectors: Vectors, top: int = 1) -> Choice:
    """Choose the networks with the best score (of accuracies, ties: the lowest NLL) by successive halving.

    All networks are ranked on a few examples, the better ones on more, the last ones on all. Networks of one generator
    agree on most examples, which tell nothing about their rank; so the first examples are those on which some pilot
    networks differ most. Source: Jamieson & Talwalkar 2016, arXiv 1502.07943; the order of the examples is our own.

    Args:
        evaluator ([`NetworkEvaluator`]): On the examples to choose on. Rungs take whole batches, so its batch size
            should be about a twentieth of the examples. Where all come together there is one rung.
        vectors ([`Vectors`] of shape `(B, D)`): Networks, which need not fit into memory.
        top (`int`, *optional*, defaults to 1): Number of networks to choose.

    Raises:
        ValueError: `top` is not in `[1, B]`, or fewer networks than that are finite.
    """
    if not 1 <= top <= len(vectors):
        raise ValueError(f"expected top from 1 to the number of networks, {len(vectors)}, found {top}.")
    rows = torch.arange(len(vectors))
    rungs = make_rungs(len(vectors), evaluator.num_examples, evaluator.batch_size, top)
    num_pilots = NUM_PILOTS if len(rungs) > 1 else 0
    if num_pilots:
        disputed = evaluator.reordered(_most_disputed_first(evaluator, vectors[rows[:num_pilots]]))

    # 1. All rungs but the last
    done, num_dropped = [], 0
    for num_networks, num_images in rungs[:-1]:
        rows = rows[:num_networks]
        done.append((len(rows), num_images))
        order = _ranking(*_predict(disputed, vectors, rows, num_images))
        num_dropped += len(rows) - len(order)
        _check_enough(len(order), top, num_dropped, len(vectors))
        rows = rows[order]

    # 2. The last one, on all examples in their own order, for which all that is common to networks is known
    num_networks, num_images = rungs[-1]
    rows = rows[:num_networks]
    done.append((len(rows), num_images))
    worth, ties = _predict(evaluator, vectors, rows)
    order = _ranking(worth, ties)
    num_dropped += len(rows) - len(order)
    _check_enough(len(order), top, num_dropped, len(vectors))
    order = order[:top]
    rows = rows[order]
    score = evaluator.metric.worth(worth[order])
    return Choice(rows, vectors[rows], score, ties[order], num_pilots, done, num_dropped)


def _check_enough(num_left: int, top: int, num_dropped: int, num_networks: int) -> None:
    if num_left < top:
        raise ValueError(
            f"expected at least {top} networks with finite values and outputs, found that {num_dropped} of "
            f"{num_networks} had to be dropped; choose fewer or find out why the generator diverges."
        )


def make_rungs(num_networks: int, num_images: int, batch_size: int, top: int) -> list[tuple[int, int]]:
    """Numbers of networks and of examples, whole batches, of every rung that tells more than the one before."""
    rungs: list[tuple[int, int]] = []
    for share_of_networks, share_of_images in RUNGS:
        networks = min(num_networks, max(MIN_FINALISTS, 4 * top, math.ceil(share_of_networks * num_networks)))
        images = min(num_images, batch_size * math.ceil(share_of_images * num_images / batch_size))
        if rungs and networks == rungs[-1][0]:
            rungs.pop()
        if not rungs or images > rungs[-1][1]:
            rungs.append((networks, images))
    return rungs


def _most_disputed_first(evaluator: ParameterEvaluator, vectors: torch.Tensor) -> torch.Tensor:
    """Positions `(N,)` of the examples, sorted by how much networks differ in being right, then in their losses."""
    output = evaluator.predict(vectors)
    losses = output.losses.double().nan_to_num(0.0, posinf=0.0)
    return _ranking(output.scores.double().var(0), -losses.std(0))


def _predict(
    evaluator: NetworkEvaluator, vectors: Vectors, rows: torch.Tensor, *num_images: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Worth of some networks `(b,)`, of so many examples if told, and what decides ties: NaN of one not finite."""
    outputs = []
    for part in rows.split(max(1, CHUNK_BYTES // (4 * evaluator.layout.num_parameters))):
        chunk = vectors[part]
        output = evaluator.predict(chunk, *num_images)
        worth, is_finite = evaluator.metric.worth(output.score), chunk.isfinite().all(1).cpu()
        outputs.append((worth, output.ties.where(is_finite, torch.nan)))
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))


def _ranking(first: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    """Positions sorted by `first` from high to low, and where it is equal by `ties` from low to high; finite ones."""
    order = ties.argsort(stable=True)
    order = order[first[order].argsort(descending=True, stable=True)]
    return order[ties[order].isfinite()]
