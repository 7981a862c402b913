import torch

from pdiff_hf import host_copy
from pdiff_hf.host_copy import HostCopy, copy_values, host_copies


def make_state(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(3, 4, generator=generator).T, "b": torch.randn(5, generator=generator).bfloat16()}
    state |= {"c": torch.tensor(7), "d": torch.randn((), generator=generator), "e": torch.empty(0, 2)}
    return {name: tensor.to(device) for name, tensor in state.items()}


def test_copies_of_every_type_are_one_from_an_accelerator(pretended, monkeypatch):
    found = host_copies(make_state("pretend"))
    assert pretended.to_host.total() == 3
    assert list(found) == list(make_state())
    for name, tensor in make_state().items():
        assert found[name].is_contiguous() and found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    monkeypatch.setattr(host_copy, "BLOCK_VALUES", 12)
    pretended.clear()
    assert all(torch.equal(tensor, found[name]) for name, tensor in host_copies(make_state("pretend")).items())
    # Of float32 one for the first tensor, one for the rest.
    assert pretended.to_host.total() == 4


def test_copies_share_no_memory(pretended):
    state = make_state()
    copies = [*host_copies(state).values(), *host_copies(make_state("pretend")).values(), *state.values()]
    pointers = [tensor.untyped_storage().data_ptr() for tensor in copies if tensor.numel()]
    assert len({*pointers}) == len(pointers)


def test_values_of_two_places_and_of_many_blocks_are_in_their_order(pretended, monkeypatch):
    host = make_state()
    device = make_state("pretend")
    tensors = [host["a"], device["b"], device["d"], device["a"], host["d"], device["a"]]
    expected = torch.cat([tensor.cpu().reshape(-1).float() for tensor in tensors])
    pretended.clear()
    copy_values(tensors, whole := torch.empty(len(expected)))
    assert torch.equal(whole, expected) and pretended.to_host.total() == 2
    monkeypatch.setattr(host_copy, "BLOCK_VALUES", 16)
    pretended.clear()
    copy_values(tensors, parts := torch.empty(len(expected)))
    assert torch.equal(parts, expected) and pretended.to_host.total() == 3


def test_what_changes_behind_a_copy_is_not_in_it(pretended):
    copy, tensor = HostCopy(), torch.ones(4, device="pretend")
    for value in (1.0, 2.0, 3.0):
        tensor.fill_(value)
        pretended.clear()
        assert copy.start([[tensor[:3]], [tensor[3:]]])
        tensor.zero_()
        assert not pretended.waits.total()
        first, second = copy.finish()
        assert (first.tolist(), second.tolist()) == ([value] * 3, [value])
