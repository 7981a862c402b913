"""Records of the part `tasks` of `metrics.json`: networks for tasks that nobody trained, beside other ways to them."""

from __future__ import annotations

from pydantic import Field

from .records import Interval, Record


class TaskGroup(Record):
    """One way to networks for unseen tasks. Accuracies and shares are fractions, on test examples and a task's labels.

    Intervals are over groups {S, complement} of tasks, which are no independent draws of each other.
    """

    accuracy: float | None = None
    """Mean over networks of a task, then over tasks."""
    ci95: Interval | None = None
    """Of `accuracy`."""
    worst: float | None = None
    """Of the task on which it is lowest."""
    recovered: float | None = None
    """(accuracy − majority) / (oracle − majority), of means over tasks: 1 for as good as networks trained on them."""
    recovered_ci95: Interval | None = None
    difference: float | None = None
    """Accuracy of `generated` minus this one."""
    difference_ci95: Interval | None = None
    """Paired over tasks."""
    description: str | None = None
    """What its networks are, as a part of a sentence."""
    role: str | None = None
    """`ceiling` (needs the task's own labels, or is no network of the layout), made of `weights`, made in the same
    `latents`, `generator`, or `reference` (what any way is seen with)."""
    seconds: float | None = None
    """To make one network once everything that is shared by tasks is there."""
    disagreement: float | None = None
    """Share of test examples on which two networks of a task say different things."""
    diversity_ratio: float | None = None
    """`disagreement` over that of networks trained on a task from several seeds."""
    near: float | None = None
    """Mean distance to the nearest network seen, as functions, over that of networks trained on the task."""
    side: float | None = None
    """Median of the distance to the nearest network seen over that to the nearest not seen, equally many of both."""
    copies: float | None = None
    """Share nearer to a network seen than half of the smallest such distance of a network trained on the task."""
    ensemble: float | None = None
    """Accuracy of the averaged probabilities of a task's networks."""
    ensemble_size: int | None = None
    """Networks of a task that are averaged."""
    ensemble_difference: float | None = None
    """`ensemble` minus that of as many networks trained on the task, where there are several."""
    ensemble_difference_ci95: Interval | None = None
    """Paired over tasks."""
    accuracies: list[float] | None = None
    """Of every task, in the order of [`TaskResults.names`]."""
    per_seed: list[float | None] | None = None
    """`accuracy` by several seeds of the generator."""


class TaskResults(Record):
    """Networks for unseen tasks: `tasks` of `metrics.json`."""

    num_seen: int | None = None
    """Tasks whose networks the generator was trained on."""
    num_validation: int | None = None
    """Tasks by which what is compared was chosen."""
    num_unseen: int | None = None
    """Tasks on which everything is reported."""
    draws: int | None = None
    """Generated networks of every unseen task."""
    split: str | None = None
    """Which tasks were seen: `groups`, `compositional` or `leaky`, see `collect.split`."""
    names: list[str] = Field(default_factory=list)
    """Of the unseen tasks, as in the column `task` of the dataset."""
    sizes: list[int] = Field(default_factory=list)
    """Classes of S, by unseen task."""
    pairs: list[int] = Field(default_factory=list)
    """Number of the group {S, complement} of every unseen task: intervals are over these."""
    unseen: dict[str, TaskGroup] = Field(default_factory=dict)
    """By way, on the unseen tasks."""

    def of_role(self, role: str) -> dict[str, TaskGroup]:
        """The ways of a role, in the order of the file."""
        return {name: group for name, group in self.unseen.items() if group.role == role}
