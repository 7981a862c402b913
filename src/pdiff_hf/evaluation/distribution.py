"""Are generated networks drawn from the distribution of the originals? Tests that know the order of the rows.

Rows of a trajectory follow each other, and held-out ones lie at equal steps between those that were seen. Against
each other, any two such sets look different: a held-out row has its neighbours in the other set, so that the nearest
neighbour of either kind says nothing but how the rows were taken. Two rules make the tests fair:

1. Groups are compared with seen rows drawn at random, which are draws of the places that the trajectory visits, as
   those of a generator ought to be. Held-out rows are only asked: which of the two are they like? A draw of such a
   place and a held-out row are alike in that, wherever the rows held out lie.
2. The same statistics are reported of `original`: rows seen, in the place of a group, against the others. This is what
   a generator that gives such rows would reach.

All that is found holds for the places that these runs visited; how few independent ones that are, is `n_effective`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..data.vectors import split_rows
from ..results.records import Distribution, DistributionIntervals
from .intervals import Z95

# Baselines that are compared beside generated networks, made of rows seen.
GROUPS_COMPARED = ("gaussian", "gaussian_latents", "noise_0.05", "noise_0.1")
# Fewer draws, rows seen or rows held out make no two halves to compare.
MIN_DRAWS, MIN_SEEN, MIN_HELD_OUT = 2, 4, 2

NUM_SPLITS = 20
NUM_PERMUTATIONS = 999
NUM_BOOTSTRAPS = 999
# Of Naeem et al. 2020, who take 5 throughout.
COVERAGE_NEIGHBOURS = 5
ROUNDING = 1e-9
# Of larger collections, as many seen rows are drawn and as many held-out ones are asked.
MAX_SEEN, MAX_HELD_OUT = 1000, 200


def compare_distributions(
    groups: Mapping[str, torch.Tensor],
    originals: torch.Tensor,
    holdout_every: int,
    n_effective: float | None = None,
    seed: int = 0,
) -> dict[str, Distribution]:
    """Compare groups with originals that the generator has not seen, in the space of its latents.

    Args:
        groups (`Mapping[str, torch.Tensor]`): Latents `(n, d)` by group name, as the diffusion sees them. What is made
            of originals has to be made of those seen.
        originals (`torch.Tensor` of shape `(K, d)`): Latents of all rows, in the order of the dataset.
        holdout_every (`int`): Every how manyth row was not seen, see [`split_rows`].
        n_effective (`float`, *optional*): As how many independent rows the originals count, of [`RunMemory`].
        seed (`int`, *optional*, defaults to 0): Of all that is drawn.

    Returns:
        `dict[str, Distribution]`: `original` first; empty where there are too few rows or draws for any of it.
    """
    train, held = split_rows(len(originals), holdout_every)
    groups = {name: latents.double() for name, latents in groups.items() if len(latents) >= MIN_DRAWS}
    if len(train) < MIN_SEEN or len(held) < MIN_HELD_OUT or not groups:
        return {}
    originals = originals.double()
    seen, unseen = originals[train], originals[held]
    asked = unseen[torch.linspace(0, len(held) - 1, min(len(held), MAX_HELD_OUT)).round().long()]
    generator = torch.Generator().manual_seed(seed)
    most = max(map(len, groups.values()))

    # 1. Halves of the rows seen: one to compare with, one in the place of a group
    num = min(most, len(seen) // 2)
    splits = []
    for _ in range(NUM_SPLITS):
        rows = torch.randperm(len(seen), generator=generator)
        splits.append((rows[:num], rows[num:][:MAX_SEEN]))
    draws = {"original": [seen[own] for own, _ in splits]}
    for name, latents in groups.items():
        draws[name] = [latents[torch.randperm(len(latents), generator=generator)[:num]] for _ in splits]

    # 2. The same statistics of all
    width = median_distance(torch.cat([seen[splits[0][1]], asked]))
    found = {}
    for name, drawn in draws.items():
        pairs = [(own, seen[others]) for own, (_, others) in zip(drawn, splits, strict=True)]
        accuracies = torch.tensor([two_sample_accuracy(*pair, asked) for pair in pairs], dtype=torch.float64)
        intervals = DistributionIntervals()
        ratio = None
        if name == "original":
            half = Z95 * accuracies.std().item()
            intervals.two_sample_accuracy = [accuracies.mean().item() - half, accuracies.mean().item() + half]
        else:
            ratio, intervals.nearest_train_ratio = nearest_train_ratio(
                groups[name], seen, train % holdout_every, unseen, generator
            )
        found[name] = Distribution(
            two_sample_accuracy=accuracies.mean().item(),
            mmd_p=mmd_p(*pairs[0], asked, width, generator),
            nearest_train_ratio=ratio,
            coverage=sum(coverage(*pair, asked) for pair in pairs) / len(pairs),
            n=num if name == "original" else len(groups[name]),
            n_effective=n_effective if name == "original" else None,
            ci95=intervals,
        )
    return found


def two_sample_accuracy(drawn: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor) -> float:
    """How often a classifier knows which of a draw `(n, d)` and an unseen row `(H, d)` is the draw.

    By the nearest neighbours: the draw is that of the two with the larger ratio of the distance to the nearest row
    seen `(S, d)` to the distance to the nearest other draw. Its logarithm is the mean over all choices of `k` rows
    seen and `k` draws, `k` the number of unseen rows (at most n - 1 and S), exactly, by the order of the distances. Of
    one distribution, the accuracy is ½; it is below where draws are nearer to rows seen than unseen rows are. Over all
    pairs this is the area under the ROC curve, so that it needs no threshold, which nearest neighbours in many
    dimensions do not place well: their accuracy is ½ also where all are taken for draws. Sources: Lopez-Paz & Oquab
    2017, "Revisiting Classifier Two-Sample Tests"; Hanley & McNeil 1982 for the area.
    """
    k = min(len(unseen), len(drawn) - 1, len(seen))
    among = distances(drawn, drawn)
    among = among[~torch.eye(len(drawn), dtype=torch.bool, device=drawn.device)].view(len(drawn), -1)
    of_draws = _log_nearest(distances(drawn, seen), k) - _log_nearest(among, k)
    of_unseen = _log_nearest(distances(unseen, seen), k) - _log_nearest(distances(unseen, drawn), k)
    above = of_draws[:, None] - of_unseen
    # What is equal differs by rounding.
    return ((above > ROUNDING).double() + (above.abs() <= ROUNDING).double() / 2).mean().item()


def _log_nearest(found: torch.Tensor, k: int) -> torch.Tensor:
    """Mean logarithm `(q,)` of the smallest of `k` of the distances `(q, a)`, over all subsets of k."""
    logs = found.sort(1).values.clamp(min=torch.finfo(found.dtype).tiny).log()
    # A distance is the smallest of those subsets whose others are among the larger ones.
    larger = torch.arange(found.shape[1] - 1, -1, -1)
    shares = (_log_choose(larger, k - 1) - _log_choose(torch.tensor(found.shape[1]), k)).exp()
    return logs @ shares.to(logs.device)


def _log_choose(n: torch.Tensor, k: int) -> torch.Tensor:
    """Logarithm of the number of subsets of `k` out of `n`, minus infinity where there is none."""
    n = n.double()
    count = torch.lgamma(n + 1) - math.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    return count.masked_fill(n < k, -torch.inf)


def mmd_p(
    drawn: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor, width: float, generator: torch.Generator
) -> float:
    """p-value of draws `(n, d)` being as near to unseen rows `(H, d)` as rows seen `(S, d)` are, by MMD.

    The statistic is the squared maximum mean discrepancy of the draws and the unseen rows, with the kernel
    `exp(-|x - y|² / 2 width²)`. Source: Gretton et al. 2012, "A Kernel Two-Sample Test". Labels are permuted among the
    draws and as many rows seen, drawn at random, so that rows that follow each other are not taken for independent
    ones, and the unseen ones stay as they are.
    """
    num = min(len(drawn), len(seen))
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[:num]]
    pool = torch.cat([drawn, seen[torch.randperm(len(seen), generator=generator)[:num]]])
    within = torch.exp(-distances(pool, pool).square() / (2 * width**2))
    across = torch.exp(-distances(pool, unseen).square() / (2 * width**2)).mean(1)
    labels = torch.rand(NUM_PERMUTATIONS + 1, 2 * num, generator=generator).argsort(1) < num
    labels[0] = torch.arange(2 * num) < num
    labels = labels.to(pool.device, torch.float64) / num
    # What the unseen rows have among themselves is the same for all.
    squares = ((labels @ within) * labels).sum(1) - 2 * labels @ across
    return (squares >= squares[0] - 1e-12).double().mean().item()


def nearest_train_ratio(
    drawn: torch.Tensor, seen: torch.Tensor, phases: torch.Tensor, unseen: torch.Tensor, generator: torch.Generator
) -> tuple[float | None, list[float] | None]:
    """Distance of draws `(n, d)` to the nearest row seen over that to the nearest row not seen, equally many of both.

    Unseen rows `(H, d)` are every m-th row; the rows seen `(S, d)` are m - 1 such sets, the `phases` `(S,)`. Let the
    unseen rows and one phase change places: without a preference, this changes nothing on average. The ratio is that
    of the mean distances before and after, over all phases, and over the draws that such a change concerns, those
    whose nearest row is in one of the two. It is 1 without a preference, also where unseen rows lie between those
    seen, and 0 for copies of rows seen.

    Returns the ratio and its bootstrap interval (95 %, over the draws); `None` where it is infinite.
    """
    to_unseen = distances(drawn, unseen).amin(1)
    by_phase = torch.stack([distances(drawn, seen[phases == phase]).amin(1) for phase in phases.unique()], 1)
    nearest, first = by_phase.min(1)
    # Where the nearest row of all is unseen, every change of a phase concerns the draw.
    is_unseen = to_unseen < nearest
    weights = torch.where(is_unseen, by_phase.shape[1], 1).double()
    others = by_phase.scatter(1, first[:, None], torch.inf).amin(1)
    after = torch.where(is_unseen, to_unseen, torch.minimum(others, to_unseen))
    sums = torch.stack([weights * nearest, weights * after], 1)
    if not sums[:, 1].sum() > 0:
        return None, None
    rows = torch.randint(len(drawn), (NUM_BOOTSTRAPS, len(drawn)), generator=generator)
    totals = sums[rows].sum(1)
    ratios = totals[:, 0] / totals[:, 1].clamp(min=torch.finfo(totals.dtype).tiny)
    interval = ratios.quantile(ratios.new_tensor([0.025, 0.975])).tolist()
    return (sums[:, 0].sum() / sums[:, 1].sum()).item(), interval


def coverage(drawn: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor) -> float:
    """Share of unseen rows `(H, d)` with a draw `(n, d)` nearer than their 5th nearest other original.

    The other originals are the unseen ones and those seen `(S, d)`. Source: Naeem et al. 2020, arXiv 2002.09797, §3.
    """
    others = torch.cat([distances(unseen, unseen).fill_diagonal_(torch.inf), distances(unseen, seen)], 1)
    radii = others.sort(1).values[:, min(COVERAGE_NEIGHBOURS, others.shape[1] - 1) - 1]
    return (distances(unseen, drawn).amin(1) <= radii).double().mean().item()


def median_distance(latents: torch.Tensor) -> float:
    """The median distance between two of the latents `(n, d)`, the width of the kernel; 1 where that is 0."""
    found = distances(latents, latents)
    return found[~torch.eye(len(latents), dtype=torch.bool, device=latents.device)].median().item() or 1.0


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances `(A, B)` of rows, exactly 0 of equal ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
