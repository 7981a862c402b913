"""Adapters for unseen tasks, merged of those of seen ones."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pdiff_hf import ParameterLayout
from pdiff_hf.adapters.gauge import canonical_rows, delta_weights
from pdiff_hf.evaluation.unseen_tasks.adapter_merges import adapter_merges
from pdiff_hf.evaluation.unseen_tasks.networks import TaskNetworks

NUM_CLASSES = 5


@pytest.fixture
def layout():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0", "1"], modules_to_save=["2"])
    base = nn.Sequential(nn.Conv2d(6, 7, 1), nn.Linear(5, 4), nn.Linear(4, 2))
    return ParameterLayout.from_model(get_peft_model(base, config), "adapter")


def subsets():
    numbers = torch.arange(1, 2**NUM_CLASSES - 1)
    return (numbers[:, None] >> torch.arange(NUM_CLASSES) & 1).float()


def tasks_of(rows, conditions):
    return TaskNetworks(rows, conditions, torch.arange(len(rows)), [""] * len(rows))


def adds(layout, rows):
    """What adapters add `(n, …)`, and their heads."""
    found = [delta.flatten(1) for _, delta in delta_weights(layout, rows.double())]
    heads = [rows[:, s.offset : s.offset + s.numel].double() for s in layout.tensors if "modules_to_save" in s.name]
    return torch.cat(found + heads, 1)


def random_rows(layout, num):
    rows = torch.randn(num, layout.num_parameters, generator=torch.Generator().manual_seed(1))
    return canonical_rows(layout, rows)


def test_merges_of_copies_of_one_adapter_are_that_adapter(layout):
    rows = random_rows(layout, 1).expand(30, -1).clone()
    found = adapter_merges(layout, tasks_of(rows[:20], subsets()[:20]), torch.zeros(layout.num_parameters))
    for name in ("merge_nearest_svd", "merge_weighted_svd", "merge_ridge_svd"):
        for make in found[name]:
            torch.testing.assert_close(adds(layout, make(subsets()[20:])), adds(layout, rows[:10]), atol=1e-4, rtol=0)


def test_adapters_that_add_up_by_classes_are_found_by_ridge_and_not_by_their_factors(layout):
    # What each adds is a multiple of one matrix; the factors are turned and scaled anew.
    conditions, one = subsets(), random_rows(layout, 1)
    directions = torch.tensor([0.5, 1.0, 1.5, 2.0, -0.7])
    amounts = 3 + conditions @ directions
    rows = one.repeat(30, 1)
    rows *= (
        torch.tensor(
            [1.0 if "lora_" not in s.name or "lora_B" in s.name else 0 for s in layout.tensors]
        ).repeat_interleave(torch.tensor([s.numel for s in layout.tensors]))
        * (amounts - 1)[:, None]
        + 1
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    seen, unseen = order[:22], order[22:]
    seen_rows = canonical_rows(layout, rows[seen])
    first = next(adapter_merges(layout, tasks_of(seen_rows, conditions[seen]), rows[0])["merge_ridge_svd"])
    expected = adds(layout, rows[unseen])
    assert (adds(layout, first(conditions[unseen])) - expected).norm() < 1e-3 * expected.norm()


def test_a_merge_is_the_nearest_of_its_rank_to_the_sum(layout):
    rows, conditions = random_rows(layout, 3), torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    wanted = torch.tensor([[1.0, 1, 0, 0, 0]])
    make = next(adapter_merges(layout, tasks_of(rows, conditions), rows[0])["merge_nearest_svd"])
    for (_, found), (_, deltas) in zip(delta_weights(layout, make(wanted)), delta_weights(layout, rows), strict=True):
        u, s, vh = torch.linalg.svd(deltas[:2].double().mean(0), full_matrices=False)
        best = (u * torch.where(torch.arange(s.shape[-1]) < 2, s, 0.0).unsqueeze(-2)) @ vh
        torch.testing.assert_close(found[0].double(), best, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["merge_ties", "merge_dare"])
def test_ties_and_dare_keep_what_all_agree_on_and_count_heads_from_the_start(name, layout):
    row, start = random_rows(layout, 1), random_rows(layout, 2)[1]
    seen = tasks_of(row.expand(3, -1).clone(), subsets()[:3])
    made = [make(subsets()[4:6]) for make in adapter_merges(layout, seen, start)[name]]
    assert all(own.shape == (2, layout.num_parameters) for own in made)
    head = next(s for s in layout.tensors if "modules_to_save" in s.name)
    place = slice(head.offset, head.offset + head.numel)
    # Of half of the values: what is dropped is as at the start; what is kept goes on from there.
    for own in made[-3:]:
        moved = (own[0, place] - start[place]) / (row[0, place] - start[place])
        assert bool((moved.abs() < 1e-4).any()) and bool((moved > 0.9).any())
    torch.testing.assert_close(made[0], next(iter(adapter_merges(layout, seen, start)[name]))(subsets()[4:6]))


def test_other_networks_have_no_such_merges():
    layout = ParameterLayout.from_model(nn.Linear(3, 2), "all")
    assert adapter_merges(layout, tasks_of(torch.zeros(2, 8), subsets()[:2]), torch.zeros(8)) == {}
