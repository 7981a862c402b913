"""Families of tasks: how many there are, and that no unseen one leaks into those seen."""

import math

import pytest

from pdiff_hf.tasks.families import RPG_UNSEEN, class_subsets, complement, num_groups, split_tasks, subset, task_name


def flipped(tasks, num_classes=10):
    return {complement(task, num_classes) for task in tasks}


@pytest.mark.parametrize("num_classes", [3, 4, 10])
def test_there_are_all_subsets_but_the_empty_one_and_all(num_classes):
    tasks = class_subsets(num_classes)
    assert len(tasks) == len(set(tasks)) == 2**num_classes - 2 == 2 * num_groups(num_classes)
    assert all(0 < len(task) < num_classes and list(task) == sorted(set(task)) for task in tasks)
    assert flipped(tasks, num_classes) == set(tasks)


@pytest.mark.parametrize("seen", [None, 16, 440])
def test_a_group_is_on_one_side_as_a_whole(seen):
    split = split_tasks(10, "groups", seen, validation=21, unseen=50)
    assert [len(tasks) for tasks in (split.seen, split.validation, split.unseen)] == [2 * (seen or 440), 42, 100]
    assert len(set(split.all)) == len(split.all)
    for tasks in (split.seen, split.validation, split.unseen):
        assert flipped(tasks) == set(tasks)


def test_more_seen_groups_change_no_others_and_another_seed_does():
    few, many = (split_tasks(10, "groups", seen, 21, 50, seed=3) for seen in (16, 100))
    assert few.unseen == many.unseen and few.validation == many.validation and set(few.seen) < set(many.seen)
    few, many = (split_tasks(30, "groups", seen, 5, 10) for seen in (8, 20))
    assert few.unseen == many.unseen and few.validation == many.validation and set(few.seen) < set(many.seen)
    assert split_tasks(10, "groups", 16, 21, 50, seed=4).unseen != few.unseen


def test_every_nth_task_is_any():
    # Rows that are held out would all be subsets with the last class.
    held_out = split_tasks(10, "groups").seen[5::10]
    assert 0.3 < sum(9 in task for task in held_out) / len(held_out) < 0.7


def test_groups_of_many_classes_are_drawn_without_a_list():
    split = split_tasks(100, "groups", seen=40, validation=5, unseen=10)
    assert len({*split.seen}) == 80 and not set(split.unseen) & (set(split.seen) | flipped(split.seen, 100))
    with pytest.raises(ValueError, match=r"how many groups are seen of more than 16 classes, found 100"):
        split_tasks(100, "groups")


def test_leaky_split_is_that_of_rpg_and_leaks():
    split = split_tasks(10, "leaky")
    assert set(split.unseen) == {subset(number) for number in RPG_UNSEEN} and len(split.unseen) == 20
    assert len(split.seen) == 1002 and not set(split.seen) & set(split.unseen)
    assert flipped(split.unseen) <= set(split.seen)
    assert subset(314) == (1, 3, 4, 5, 8)
    with pytest.raises(ValueError, match="10 classes and 20 unseen tasks with split=leaky, found 7 and 0"):
        split_tasks(7, "leaky")


def test_compositional_split_keeps_larger_subsets_and_no_complement():
    split = split_tasks(10, "compositional", validation=15)
    assert len(split.seen) == sum(math.comb(10, size) for size in (1, 2, 3)) - 15 and len(split.validation) == 15
    assert len(split.unseen) == sum(math.comb(10, size) for size in (4, 5, 6))
    assert not flipped(split.seen + split.validation) & set(split.unseen)
    assert len(split_tasks(10, "compositional", unseen=40).unseen) == 40
    with pytest.raises(ValueError, match=r"largest_seen from 1 to 4 with 10 classes.*found 5"):
        split_tasks(10, "compositional", largest_seen=5)


@pytest.mark.parametrize("values", [(440, 21, 51), (None, 461, 50), (0, 12, 500), (-1, 0, 0)])
def test_more_tasks_than_there_are_is_refused(values):
    with pytest.raises(ValueError, match=r"expected 511 groups at most, found .* lower collect\.seen"):
        split_tasks(10, "groups", *values)


def test_tasks_are_named_by_their_classes():
    assert task_name((0, 2), ["cat", "dog", "ship"]) == "cat+ship"
