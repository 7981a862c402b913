"""Which rows of a collection are kept from training: what a held-out loss means depends on it.

* `between`: drawn at random; along one trajectory they lie between neighbours that were seen: interpolation. Where
  conditions may be asked for that nobody has seen, all rows of a condition together.
* `block`: of every run a block in the middle, with a gap on both sides that nothing is trained on.
* `end`: of every run the last tenth: drift, which no generator of the past can know.
* `run`: whole runs, where there are several: the only independent rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..conditions import ConditionSpec
from ..files import read_object
from ..wording import setting

KINDS = ("between", "block", "end", "run")
# Rows on either side of a block, in units of its own size.
GAP = 0.5
# Fewer conditions say little about others.
MIN_CONDITIONS = 8


def condition_units(conditions: torch.Tensor, spec: ConditionSpec) -> torch.Tensor:
    """Numbers `(K,)` of the rows that are left out together, by their class labels `(K, n)` of a [`ConditionEncoder`].

    They are those of a condition, so that what is learned of conditions is what holds of others: of a subset of
    classes, whatever else a condition says, also those of its complement, whose task is the same with other names for
    the answers. Each row is on its own where there are no others, of labels, or too few to learn from.
    """
    classes = spec.part("classes")
    if classes is not None:
        # Encoded as -1 and 1.
        conditions = conditions[:, classes[1]]
        conditions = conditions * conditions[:, :1]
    distinct, units = conditions.unique(dim=0, return_inverse=True)
    if spec.kind == "label" or len(distinct) < MIN_CONDITIONS:
        return torch.arange(len(conditions), device=conditions.device)
    return units


def hold_out(
    kind: str, runs: Mapping[str, Sequence[int]], share: float, seed: int = 0, units: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows into those that are trained on and those that are kept from it, as indices.

    Args:
        kind (`str`): One of `KINDS`.
        runs (`Mapping[str, Sequence[int]]`): By run the rows, in the order of their time, see [`RowOrder.by_run`].
        share (`float`): Of the rows, of each run's rows or of the runs, to be kept from training; at least one.
        seed (`int`, *optional*, defaults to 0): Of what is drawn at random.
        units (`torch.Tensor` of shape `(K,)`, *optional*): Of `between`, the numbers of rows that are drawn together.

    Raises:
        ValueError: nothing is left on one of the two sides.
    """
    members = [np.asarray(rows) for rows in runs.values()]
    number = sum(map(len, members))
    held, gap = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
    random = np.random.default_rng(seed)
    if kind == "between":
        units = np.arange(number) if units is None else units.unique(return_inverse=True)[1].cpu().numpy()
        num_units = units.max() + 1
        held = np.isin(units, random.permutation(num_units)[: _count(share, num_units)])
    elif kind == "run":
        for run in random.permutation(len(members))[: _count(share, len(members))]:
            held[members[run]] = True
    else:
        for rows in members:
            size = _count(share, len(rows))
            first = (len(rows) - size) // 2 if kind == "block" else len(rows) - size
            free = math.ceil(GAP * size) if kind == "block" else 0
            gap[rows[max(first - free, 0) : first + size + free]] = True
            held[rows[first : first + size]] = True
    train, kept = np.flatnonzero(~(held | gap)), np.flatnonzero(held)
    if len(train) == 0:
        runs_there = "1 run" if len(members) == 1 else f"{len(members)} runs"
        raise ValueError(
            f"{setting('diffusion.validate', kind)} with a share of {share:g} leaves none of "
            f"{number} checkpoints in {runs_there} to train on; take more of them, a smaller "
            f"{setting('diffusion.validation_share')}, or other rows."
        )
    return torch.from_numpy(train), torch.from_numpy(kept)


def _count(share: float, number: int) -> int:
    return max(1, round(share * number))


def read_holdout_every(folder: Path) -> int | None:
    """Every which row an autoencoder or a pipeline was not trained on, by its folder; `None` when it does not say so.

    Raises:
        ValueError: it says something else than a number of 2 and more.
    """
    path = folder / "train_config.json"
    config = read_object(path, autoencoder=dict).get("autoencoder", {}) if path.is_file() else {}
    every = config.get("holdout_every")
    if every is not None and (not isinstance(every, int) or every < 2):
        raise ValueError(
            f"{path}: expected a whole number of at least 2 as autoencoder.holdout_every, found {every!r:.200}; "
            "restore it from a copy."
        )
    return every
