"""Sections of a report on networks for tasks that nobody trained."""

from __future__ import annotations

from ..results.metrics import Metrics
from ..results.tasks_table import ROLES, accuracy_table, diversity_table, ordered_groups
from ..results.text import ReportTable, Section

SPLITS = {
    "groups": "A subset of the classes and its complement, the same task with flipped labels, are on one side: seen, "
    "for validation, or unseen.",
    "compositional": "Unseen are larger subsets than any that was seen, without complements of those.",
    "leaky": "The complement of every unseen subset was seen: its network with the answers flipped is one for the "
    "unseen task, and no new one.",
}


def unseen_tasks(metrics: Metrics) -> list[Section]:
    """How good the networks are, how different from each other and how new, and every task by itself."""
    tasks = metrics.tasks
    split = SPLITS.get(tasks.split or "", "")
    text = [
        f"{metrics.num_parameters:,} generated parameters; networks of {tasks.num_seen:g} tasks were seen, and "
        f"{tasks.draws:g} are drawn for each of {tasks.num_unseen:g} others. Each is judged by the labels of its own "
        f"task on {metrics.num_test:,} test examples. {split}".strip(),
        f"What a way leaves open, such as the penalty of a regression, is the best on {tasks.num_validation:g} "
        "validation tasks and validation examples. Recovered: (accuracy − majority) / (oracle − majority); oracles "
        "are networks trained on the task. Intervals are Student's t over the groups of a subset and its complement.",
    ]
    groups = ordered_groups(metrics)
    rows = [
        (name, ROLES.get(group.role or "", ""), group.description or "")
        for name, group in groups.items()
        if group.description
    ]
    ways = ReportTable(("way", "kind", "its networks"), rows, "What the ways are", folded=True)
    found = [
        Section("Networks for tasks that nobody trained", text, ["unseen_tasks"], [accuracy_table(metrics), ways])
    ]
    found.append(Section("Task by task", plots=["task_by_task", "condition_map"]))
    diversity = diversity_table(metrics)
    if diversity.rows:
        text = [
            "Functions are logits on test examples without their mean over the classes. Near: the distance to the "
            "nearest network seen, over that of networks trained on the unseen tasks. Side: it over the distance to "
            "the nearest of these, equally many of both. Copies are nearer to a network seen than half of the "
            "smallest such distance of a trained one."
        ]
        found.append(Section("Are they different, and new?", text, tables=[diversity]))
    return found
