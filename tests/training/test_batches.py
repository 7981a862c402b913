import torch

from pdiff_hf.training.batches import GlobalBatch


def test_no_row_is_seen_twice_within_an_epoch():
    seen = torch.cat([GlobalBatch(10, 4, step, seed=0).indices for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def test_epochs_and_seeds_have_different_orders():
    first, second = (GlobalBatch(50, 50, step, seed=0).indices.tolist() for step in (0, 1))
    other = GlobalBatch(50, 50, 0, seed=1).indices.tolist()
    assert first != second and first != other


def test_two_processes_share_the_batch_of_one():
    whole = GlobalBatch(10, 6, 3, seed=0)
    parts = [GlobalBatch(10, 3, 3, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.normal(5) for part in parts]), whole.normal(5))
    assert torch.equal(torch.cat([part.integers(1000) for part in parts]), whole.integers(1000))


def test_random_numbers_depend_on_step_and_seed_only():
    assert torch.equal(GlobalBatch(10, 4, 7, seed=3).normal(2), GlobalBatch(10, 4, 7, seed=3).normal(2))
    assert not torch.equal(GlobalBatch(10, 4, 7, seed=3).normal(2), GlobalBatch(10, 4, 8, seed=3).normal(2))
    assert not torch.equal(GlobalBatch(10, 4, 7, seed=3).normal(2), GlobalBatch(10, 4, 7, seed=4).normal(2))
