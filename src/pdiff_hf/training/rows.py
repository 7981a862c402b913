"""Which rows of a collection are kept from training: what a held-out loss means depends on it.

* `between`: drawn at random; along one trajectory they lie between neighbours that were seen: interpolation.
* `block`: of every run a block in the middle, with a gap on both sides that nothing is trained on.
* `end`: of every run the last tenth: drift, which no generator of the past can know.
* `run`: whole runs, where there are several: the only independent rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..wording import argument

KINDS = ("between", "block", "end", "run")
# Rows on either side of a block, in units of its own size.
GAP = 0.5


def hold_out(kind: str, runs: Sequence, share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows into those that are trained on and those that are kept from it, as indices.

    Args:
        kind (`str`): One of `KINDS`.
        runs (`Sequence`): Of every row, in the order of the collection, the name of its run.
        share (`float`): Of the rows, or of the runs, to be kept from training; at least one.
        seed (`int`, *optional*, defaults to 0): Of what is drawn at random.

    Raises:
        ValueError: nothing is left on one of the two sides.
    """
    names = np.asarray([str(run) for run in runs])
    held, gap = np.zeros(len(names), dtype=bool), np.zeros(len(names), dtype=bool)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    if kind == "between":
        held[np.random.default_rng(seed).permutation(len(names))[: _count(share, len(names))]] = True
    elif kind == "run":
        if len(members) < 2:
            raise ValueError(
                f"expected several runs to keep one of them from training, found {len(members)}; take "
                f"{argument('validate', 'between', 'between', 'diffusion.validate')}."
            )
        order = np.random.default_rng(seed).permutation(len(members))
        for run in order[: min(_count(share, len(members)), len(members) - 1)]:
            held[members[run]] = True
    else:
        for rows in members:
            size = _count(share, len(rows))
            first = (len(rows) - size) // 2 if kind == "block" else len(rows) - size
            free = math.ceil(GAP * size) if kind == "block" else 0
            gap[rows[max(first - free, 0) : first + size + free]] = True
            held[rows[first : first + size]] = True
    train, kept = np.flatnonzero(~(held | gap)), np.flatnonzero(held)
    if len(train) == 0 or len(kept) == 0:
        raise ValueError(
            f"{len(names)} training checkpoints in {len(members)} runs leave none to "
            f"{'train on' if len(train) == 0 else 'validate by'} with "
            f"{argument('validate', kind, kind, 'diffusion.validate')} and a share of {share:g}; take more "
            f"checkpoints or another {argument('validation_share', key='diffusion.validation_share')}."
        )
    return torch.from_numpy(train), torch.from_numpy(kept)


def _count(share: float, number: int) -> int:
    return max(1, round(share * number))
