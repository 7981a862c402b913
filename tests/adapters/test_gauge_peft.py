"""The gauge beside what peft itself makes of the factors."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from pdiff_hf.adapters import gauge
from pdiff_hf.adapters.gauge import canonical_rows, delta_weights, lora_pairs
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.peft_model import lora_layers

NAMES = ("words", "linear", "narrow", "transposed", "conv", "groups")


class Layers(nn.Module):
    """One layer of each kind that has a gauge; `narrow` has fewer outputs than the adapter has ranks."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.linear, self.narrow = nn.Linear(8, 6), nn.Linear(8, 2)
        self.transposed = Conv1D(7, 6)
        self.conv, self.groups = nn.Conv2d(3, 5, 3), nn.Conv2d(4, 8, 3, groups=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.groups(images)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # Of transposed weights, which peft finds out by itself, and of merges of grouped convolutions.
        warnings.simplefilter("ignore")
        return get_peft_model(Layers(), LoraConfig(r=4, lora_alpha=6, target_modules=list(NAMES))).eval()


@pytest.fixture
def layout(model) -> ParameterLayout:
    return ParameterLayout.from_model(model, "adapter")


@pytest.fixture
def rows(layout) -> torch.Tensor:
    return torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def deltas(model) -> dict[str, torch.Tensor]:
    """What peft would add to the weights, in double precision; it computes none for grouped convolutions."""
    layers = {name.rpartition(".")[2]: layer for name, layer in lora_layers(model).items()}
    return {name: layers[name].get_delta_weight("default").double() for name in NAMES if name != "groups"}


def test_every_kind_is_a_pair_with_its_groups(layout):
    found = {pair.layer.rpartition(".")[2]: pair.groups for pair in lora_pairs(layout)}
    assert found == dict.fromkeys(NAMES, 1) | {"groups": 2}
    assert len(layout.tensors) == 2 * len(NAMES)


def test_products_times_the_scaling_are_what_peft_adds(model, layout, rows):
    layout.load_into(model, rows[0])
    ours = {name.rpartition(".")[2]: delta[0, 0] for name, delta in delta_weights(layout, rows.double())}
    for name, expected in deltas(model).items():
        found = 1.5 * ours[name]
        if name in ("words", "transposed"):
            found = found.T
        error = (found.reshape(expected.shape) - expected).norm() / expected.norm()
        assert error < 1e-6, name


def test_what_peft_adds_stays(model, layout, rows):
    layout.load_into(model, rows[0])
    before = deltas(model)
    canonical = canonical_rows(layout, rows)
    assert canonical.dtype == torch.float32
    assert (canonical - rows).abs().max() > 0.1
    layout.load_into(model, canonical[0])
    for name, after in deltas(model).items():
        assert (after - before[name]).norm() < 1e-6 * before[name].norm(), name


@torch.no_grad()
def test_outputs_of_a_grouped_convolution_stay(model, layout, rows):
    images = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    with model.disable_adapter():
        base = model(images)
    layout.load_into(model, rows[0])
    before = model(images)
    layout.load_into(model, canonical_rows(layout, rows)[0])
    assert (before - base).abs().mean() > 1
    assert torch.allclose(model(images), before, atol=1e-5 * before.abs().max().item())


def test_turned_copies_of_every_kind_are_one_row(layout, rows):
    other, generator = rows.clone(), torch.Generator().manual_seed(3)
    for pair in lora_pairs(layout):
        b, a = pair.factors(other)
        rank = a.shape[-2]
        turn = torch.eye(rank) + 0.3 * torch.randn(len(rows), pair.groups, rank, rank, generator=generator)
        b.copy_(b @ turn.inverse())
        a.copy_(turn @ a)
    assert (other - rows).abs().max() > 0.1
    found = canonical_rows(layout, rows)
    assert torch.allclose(canonical_rows(layout, other), found, atol=1e-5)
    assert torch.allclose(canonical_rows(layout, found), found, atol=1e-5)


def test_rows_do_not_depend_on_those_beside_them(layout, rows, monkeypatch):
    alone = torch.cat([canonical_rows(layout, row[None]) for row in rows])
    assert torch.allclose(canonical_rows(layout, rows), alone, atol=1e-6)
    # Two rows a block, the last one of one row; and rows that are longer than a block.
    for block in (2 * layout.num_parameters, 1):
        monkeypatch.setattr(gauge, "BLOCK", block)
        assert torch.allclose(canonical_rows(layout, rows), alone, atol=1e-6)
