"""One sentence about networks for unseen tasks."""

from __future__ import annotations

from ...results.tasks import TaskGroup, TaskResults
from ...results.text import percent, points, sign

# What needs no denoiser, in the same latents.
REGRESSIONS = ("ridge_latents", "ridge_pairs_latents", "kernel_ridge_latents", "perceptron_latents")


def tasks_verdict(results: TaskResults) -> tuple[str, str]:
    """Finding and verdict: `unseen_worse`, `unseen_no_gain`, `unseen_space` or `unseen_better`.

    `unseen_worse`: no better than what is made of the seen networks' weights. `unseen_no_gain`: better than that, and
    no better than regression in the same latents. `unseen_space`: the same, where tasks have several trained networks,
    so that it is known how much draws should differ. `unseen_better`: better than these regressions as well.
    """
    groups = results.unseen
    generated = groups["generated"]
    weights = _hardest(results.of_role("weights"))
    text = (
        f"Networks generated for {results.num_unseen} tasks that nobody trained reach {percent(generated.accuracy)} "
        f"(networks trained on them {percent(groups['oracle'].accuracy)}, the more frequent answer "
        f"{percent(groups['majority'].accuracy)})"
    )
    if weights is None:
        return "unseen_better", f"{text}."
    against = f"{points(weights.difference, weights.difference_ci95)} points against {weights.description}"
    if sign(weights.difference_ci95) <= 0:
        return "unseen_worse", f"{text}: no better than what is made of seen weights, {against}."
    text += f": {against}, the best that is made of seen weights"
    in_latents = {key: groups[key] for key in REGRESSIONS if key in groups}
    regression = _hardest(in_latents)
    if regression is None:
        return "unseen_better", f"{text}."
    against = f"{points(regression.difference, regression.difference_ci95)} points against {regression.description}"
    if sign(regression.difference_ci95) > 0:
        return "unseen_better", f"{text}, and {against} in the same latents."
    text += f"; no better than regression in the same latents, {against}, so it is the space and not the diffusion"
    gaussian = groups.get("gaussian_ridge_latents")
    if generated.diversity_ratio is not None:
        text += f". Networks of a task differ {generated.diversity_ratio:.2f} times as often as trained ones"
        if gaussian is not None and gaussian.diversity_ratio is not None:
            text += f", draws around the regression {gaussian.diversity_ratio:.2f} times"
        if generated.ensemble_difference is not None:
            difference = points(generated.ensemble_difference, generated.ensemble_difference_ci95)
            text += f"; an ensemble of {generated.ensemble_size} is {difference} points from one of trained networks"
        return "unseen_space", f"{text}."
    return "unseen_no_gain", f"{text}."


def _hardest(groups: dict[str, TaskGroup]) -> TaskGroup | None:
    """The way with the highest accuracy."""
    return max(groups.values(), key=lambda group: group.accuracy, default=None)
