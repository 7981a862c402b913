"""Families of tasks on the same examples, and which of their tasks are seen: pure functions of numbers.

`class_subsets`: a task is a subset S of C classes, "is it one of these?". The complement of S is the same task with
its labels flipped, so a network of the one is at once a network of the other: a split that has both on different sides
leaks. Here they are a group {S, complement}, which is on one side as a whole, unless a split is called leaky.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

Split = Literal["groups", "leaky", "compositional"]
Subset = tuple[int, ...]

# The tasks that RPG keeps for its test, by their numbers. Source: NUS-HPC-AI-Lab/Recurrent-Parameter-Generation at
# 65da1eb, dataset/condition_classinput_vittiny/split.sh. That bit c is class c is taken for granted here.
RPG_UNSEEN = (
    314, 482, 589, 197, 462, 111, 101, 278, 793, 279, 653, 238, 1001, 141, 884, 592, 502, 643, 383, 128
)  # fmt: skip
RPG_CLASSES = 10
# With more, their number is beyond what anybody trains.
MAX_CLASSES_LISTED = 16


@dataclass(frozen=True)
class TaskSplit:
    """Tasks by their role, each a rising tuple of classes; none has two roles.

    Networks of the tasks `seen` train generators, those of `validation` choose what baselines need, and those of
    `unseen` are what generated networks are compared with.
    """

    seen: tuple[Subset, ...]
    validation: tuple[Subset, ...]
    unseen: tuple[Subset, ...]

    @property
    def all(self) -> tuple[Subset, ...]:
        """In this order."""
        return self.seen + self.validation + self.unseen


def num_groups(num_classes: int) -> int:
    """How many groups {S, complement} there are, without that of the empty set: `2^(C-1) - 1`."""
    return 2 ** (num_classes - 1) - 1


def subset(number: int) -> Subset:
    """The classes of a task's number, of which bit c is class c."""
    return tuple(index for index in range(number.bit_length()) if number >> index & 1)


def complement(classes: Subset, num_classes: int) -> Subset:
    """All other classes."""
    return tuple(index for index in range(num_classes) if index not in classes)


def class_subsets(num_classes: int) -> list[Subset]:
    """All tasks: the subsets of C classes but for the empty one and that of all, `2^C - 2` of them."""
    _check_listed(num_classes)
    return [subset(number) for number in range(1, 2**num_classes - 1)]


@lru_cache(maxsize=16)
def split_tasks(
    num_classes: int,
    split: Split,
    seen: int | None = None,
    validation: int = 0,
    unseen: int = 0,
    largest_seen: int = 3,
    seed: int = 0,
) -> TaskSplit:
    """Deal the tasks of C classes their roles.

    * `groups`: groups are drawn that are seen, validation and unseen as a whole. With more seen ones, the others stay.
    * `leaky`: RPG's twenty are unseen, for 10 classes; the complement of each is seen.
    * `compositional`: subsets of up to `largest_seen` classes are seen, larger ones unseen; complements of those seen
      are left out.

    Args:
        num_classes (`int`): C, 3 or more.
        split (`str`): One of these.
        seen (`int`, *optional*): How many groups, and of a split that is not by groups, tasks; all that are left by
            default.
        validation (`int`, *optional*, defaults to 0): How many groups (tasks) of those that could be seen.
        unseen (`int`, *optional*, defaults to 0): How many groups; of `compositional` tasks, 0 for all of them.
        largest_seen (`int`, *optional*, defaults to 3): Of `compositional`.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn, and of the order within a role.

    Raises:
        ValueError: there are not so many tasks, or no such split of so many classes.
    """
    if num_classes < 3:
        raise ValueError(f"expected 3 classes or more, of which subsets are tasks, found {num_classes}.")
    draw = random.Random(seed)
    if split == "groups":
        chosen = _split_groups(num_classes, seen, validation, unseen, draw)
    else:
        dealt = _leaky(num_classes, unseen) if split == "leaky" else _compositional(num_classes, largest_seen)
        known, kept = (draw.sample(tasks, len(tasks)) for tasks in dealt)
        _check_number("tasks that may be seen", len(known), validation, 1 if seen is None else seen)
        _check_number("unseen tasks", len(kept), unseen)
        rest = known[validation:]
        chosen = rest[:seen], known[:validation], kept[: unseen or None]
    # Every n-th row may be held out: it is to be any task.
    return TaskSplit(*(tuple(random.Random(seed).sample(tasks, len(tasks))) for tasks in chosen))


def _split_groups(
    num_classes: int, seen: int | None, validation: int, unseen: int, draw: random.Random
) -> tuple[list[Subset], ...]:
    number = num_groups(num_classes)
    if seen is None:
        _check_listed(num_classes)
        _check_number("groups", number, unseen, validation, 1)
        seen = number - validation - unseen
    _check_number("groups", number, unseen, validation, seen)
    # A group is the number of its task without the last class. Those of all classes but the last have no more bits.
    groups: dict[int, None] = {}
    if num_classes <= MAX_CLASSES_LISTED:
        groups = dict.fromkeys(draw.sample(range(1, number + 1), number))
    while len(groups) < unseen + validation + seen:
        groups[draw.randint(1, number)] = None
    found = iter(map(subset, groups))
    roles = [[next(found) for _ in range(count)] for count in (unseen, validation, seen)]
    kept, chosen, known = ([task for own in role for task in (own, complement(own, num_classes))] for role in roles)
    return known, chosen, kept


def _leaky(num_classes: int, unseen: int) -> tuple[list[Subset], list[Subset]]:
    if num_classes != RPG_CLASSES or unseen not in (0, len(RPG_UNSEEN)):
        raise ValueError(
            f"expected {RPG_CLASSES} classes and {len(RPG_UNSEEN)} unseen tasks with split=leaky, found {num_classes} "
            f"and {unseen}; take split=groups."
        )
    kept = [subset(number) for number in RPG_UNSEEN]
    return [task for task in class_subsets(num_classes) if task not in kept], kept


def _compositional(num_classes: int, largest: int) -> tuple[list[Subset], list[Subset]]:
    if not 1 <= largest or not largest + 1 < num_classes - largest:
        raise ValueError(
            f"expected largest_seen from 1 to {(num_classes - 2) // 2} with {num_classes} classes, so that there are "
            f"larger subsets that are no complements of those seen, found {largest}."
        )
    _check_listed(num_classes)
    known, kept = (
        [task for size in sizes for task in combinations(range(num_classes), size)]
        for sizes in (range(1, largest + 1), range(largest + 1, num_classes - largest))
    )
    return known, kept


def _check_listed(num_classes: int) -> None:
    if num_classes > MAX_CLASSES_LISTED:
        raise ValueError(
            f"expected how many groups are seen of more than {MAX_CLASSES_LISTED} classes, found {num_classes} of "
            "them; give collect.split=groups and collect.seen."
        )


def _check_number(what: str, there: int, *wanted: int) -> None:
    if sum(wanted) > there or min(wanted) < 0:
        raise ValueError(
            f"expected {there} {what} at most, found {' + '.join(map(str, wanted))} that are wanted; lower "
            "collect.seen, collect.validation or collect.unseen."
        )


def task_name(classes: Subset, names: Sequence[str]) -> str:
    """A task as its rows are named: `cat+dog`."""
    return "+".join(names[index] for index in classes)
