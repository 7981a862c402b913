"""Are two samples of independent things of one distribution? By their distances alone, with permutation p-values."""

from __future__ import annotations

import torch

NUM_PERMUTATIONS = 199
# Of values, in float64: 64 MB for the distances of as many permutations as fit.
BLOCK_VALUES = 2**23


def function_tests(
    within: torch.Tensor, across: torch.Tensor, among: torch.Tensor, generator: torch.Generator
) -> tuple[float | None, float | None, float | None]:
    """Two-sample accuracy of the first sample against the second one, its p-value, and that of their MMD.

    Args:
        within, across, among (`torch.Tensor` of shape `(m, m)`): Distances of m draws, of draws to originals, and of
            originals, at least 2 of both.
        generator (`torch.Generator`): Of the permutations.

    Returns `None` for each where a distance is not finite.
    """
    distances = torch.cat([torch.cat([within, across], 1), torch.cat([across.T, among], 1)])
    if not distances.isfinite().all():
        return None, None, None
    m = len(within)
    orders = torch.rand(NUM_PERMUTATIONS + 1, 2 * m, generator=generator).argsort(1)
    orders[0] = torch.arange(2 * m)
    logs = distances.clamp(min=torch.finfo(distances.dtype).tiny).log()
    size = max(1, BLOCK_VALUES // (2 * m) ** 2)
    accuracies = torch.cat([
        nearest_neighbour_accuracy(logs[part[:, :, None], part[:, None, :]]) for part in orders.split(size)
    ])  # fmt: skip
    # The width of the kernel is the median distance of originals.
    width = among[~torch.eye(m, dtype=torch.bool)].median().item() or 1.0
    kernel = torch.exp(-distances.square() / (2 * width**2))
    signs = torch.full((len(orders), 2 * m), 1.0, dtype=kernel.dtype).scatter_(1, orders[:, m:], -1.0)
    discrepancies = ((signs @ kernel) * signs).sum(1)
    p_values = [(values >= values[0] - 1e-9).double().mean().item() for values in (accuracies, discrepancies)]
    return accuracies[0].item(), *p_values


def nearest_neighbour_accuracy(logs: torch.Tensor) -> torch.Tensor:
    """How often a classifier knows which of two is of the first half, `(b,)` of logarithms of distances `(b, 2m, 2m)`.

    Of two, it takes the one that is nearer to the nearest of the first half than to the nearest of the second, by the
    ratio of the two distances. Of both halves, one is asked with all others of its half, and with all of the other
    but the one in its place, so that equally many are compared. The accuracy is the area under the ROC curve: ½ where
    both are of one distribution. Sources: Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests"; Hanley &
    McNeil 1982 for the area.
    """
    m = logs.shape[1] // 2
    logs = logs.masked_fill(torch.eye(m, dtype=torch.bool).repeat(2, 2), torch.inf)
    scores = logs[:, :, m:].amin(2) - logs[:, :, :m].amin(2)
    above = scores[:, :m, None] - scores[:, None, m:]
    # What is equal differs by rounding.
    return ((above > 1e-9).double() + (above.abs() <= 1e-9).double() / 2).mean((1, 2))
