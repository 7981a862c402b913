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


def test_accumulation_steps_of_two_processes_share_the_batch_of_one():
    whole = GlobalBatch(10, 8, 3, seed=0)
    parts = [
        GlobalBatch(10, 2, 3, seed=0, rank=rank, world_size=2, micro_step=micro_step, micro_steps=2)
        for micro_step in (0, 1)
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.normal(5) for part in parts]), whole.normal(5))


def test_large_rows_are_drawn_by_the_process_that_needs_them_only(monkeypatch):
    drawn = []
    normal = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda values, **options: drawn.append(len(values)) or normal(values, **options)
    )
    values = 2**20
    own = GlobalBatch(1000, 2, 0, seed=0, rank=3, world_size=64).normal(values)
    assert own.shape == (2, values) and drawn == [1, 1]


def test_draws_of_one_step_differ():
    batch = GlobalBatch(10, 4, 0, seed=0)
    assert not torch.equal(batch.normal(3), batch.normal(3))


def test_no_row_is_seen_twice_when_the_global_batch_changes_on_resume():
    before = [GlobalBatch(20, 4, step, seed=0).indices for step in range(2)]
    after = [GlobalBatch(20, 3, 2 + n, seed=0, rank=r, world_size=2, start=8 + 6 * n) for n in (0, 1) for r in (0, 1)]
    seen = torch.cat([*before, *[batch.indices for batch in after]])
    assert sorted(seen.tolist()) == list(range(20))
