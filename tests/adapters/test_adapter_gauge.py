import pytest
import torch

from pdiff_hf.adapters.gauge import (
    canonical_rows,
    delta_weights,
    lora_pairs,
    mean_adapter,
    near_equal,
    singular_values,
)
from pdiff_hf.data.gauge import recorded_form
from pdiff_hf.layout import ParameterLayout, TensorSpec

SHAPES = {
    "linear": ((4, 6), (5, 4)),
    "conv": ((4, 3, 3, 3), (5, 4, 1, 1)),
    "groups": ((4, 6, 3, 3), (8, 2, 1, 1)),
    "thin": ((4, 3), (2, 4)),
}


def layout_of(kinds=SHAPES) -> ParameterLayout:
    specs, offset = [TensorSpec("head.weight", (3, 2), 0)], 6
    for name, shapes in ((name, SHAPES[name]) for name in kinds):
        for factor, shape in zip("AB", shapes, strict=True):
            spec = TensorSpec(f"{name}.lora_{factor}.default.weight", shape, offset, transform="canonical_lora")
            specs.append(spec)
            offset += spec.numel
    return ParameterLayout(tuple(specs))


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(7, layout_of().num_parameters, generator=torch.Generator().manual_seed(0))


def test_products_stay_and_all_else_too(rows):
    layout = layout_of()
    found = canonical_rows(layout, rows)
    for (_, before), (_, after) in zip(
        delta_weights(layout, rows.double()), delta_weights(layout, found.double()), strict=True
    ):
        assert (after - before).norm() < 1e-6 * before.norm()
    assert torch.equal(found[:, :6], rows[:, :6])
    assert not torch.allclose(found[:, 6:], rows[:, 6:])
    assert torch.allclose(canonical_rows(layout, found), found, atol=1e-5)


def test_turned_copies_give_equal_rows(rows):
    layout, other = layout_of(), rows.clone()
    generator = torch.Generator().manual_seed(1)
    for pair in lora_pairs(layout):
        b, a = pair.factors(other)
        rank = a.shape[-2]
        turn = 0.3 * torch.randn(rank, rank, generator=generator) + torch.eye(rank)
        b.copy_(b @ turn.inverse())
        a.copy_(turn @ a)
    assert (other - rows).abs().max() > 0.1
    assert torch.allclose(canonical_rows(layout, other), canonical_rows(layout, rows), atol=1e-5)


def test_groups_of_a_convolution_have_a_gauge_each():
    (pair,) = lora_pairs(layout_of(["groups"]))
    assert pair.groups == 2
    assert {pair.groups for pair in lora_pairs(layout_of(["linear", "conv", "thin"]))} == {1}


def test_singular_values_are_descending_and_those_of_the_product(rows):
    layout = layout_of()
    found = canonical_rows(layout, rows)
    products = dict(delta_weights(layout, rows.double()))
    for name, values in singular_values(layout, found):
        expected = torch.linalg.svdvals(products[name])[..., : values.shape[-1]]
        expected = torch.nn.functional.pad(expected, (0, values.shape[-1] - expected.shape[-1]))
        assert torch.allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_zero_factors_and_padded_ranks_have_no_nan(rows):
    layout = layout_of()
    for pair in lora_pairs(layout):
        b, a = pair.factors(rows)
        b[0] = 0
        b[1, ..., -1], a[1, :, -1] = 0, 0
    found = canonical_rows(layout, rows)
    assert found.isfinite().all()
    for pair in lora_pairs(layout):
        b, a = pair.factors(found)
        assert not b[0].any() and not a[0].any()
        assert not b[1, ..., -1].any() and not a[1, :, -1].any()
    assert canonical_rows(layout, rows[:0]).shape == (0, layout.num_parameters)


def test_equal_singular_values_are_seen():
    layout = layout_of(["linear"])
    row = torch.zeros(2, layout.num_parameters)
    b, a = lora_pairs(layout)[0].factors(row)
    for number, values in enumerate(([3.0, 2.99, 1.0, 0.0], [3.0, 2.0, 1.0, 0.5])):
        b[number, 0, :4] = torch.diag(torch.tensor(values)).sqrt()
        a[number, 0, :, :4] = torch.diag(torch.tensor(values)).sqrt()
    assert near_equal(layout, canonical_rows(layout, row)) == {"linear": 0.5}


def test_a_factor_alone_is_refused():
    spec = TensorSpec("x.lora_A.default.weight", (2, 3), 0, transform="canonical_lora")
    with pytest.raises(ValueError, match=r"without its other factor 'x\.lora_B"):
        lora_pairs(ParameterLayout((spec,)))


def test_rows_are_turned_to_a_reference(rows):
    layout, reference = layout_of(), rows[0].clone()
    generator = torch.Generator().manual_seed(1)
    near = reference + 0.05 * torch.randn(rows.shape, generator=generator)
    other = near.clone()
    for pair in lora_pairs(layout):
        b, a = pair.factors(other)
        turn = torch.linalg.qr(torch.randn(a.shape[-2], a.shape[-2], generator=generator)).Q
        b.copy_(b @ turn.T)
        a.copy_(turn @ a)
    turned = canonical_rows(layout, near, reference)
    # Of one adapter, one row, whatever frame its training had; and rows of near ones are near each other.
    assert torch.allclose(canonical_rows(layout, other, reference), turned, atol=1e-5)
    assert torch.allclose(canonical_rows(layout, turned, reference), turned, atol=1e-5)
    factors = slice(6, None)
    alone = canonical_rows(layout, near)
    assert (turned - turned.mean(0))[:, factors].norm() < 0.9 * (alone - alone.mean(0))[:, factors].norm()
    products = dict(delta_weights(layout, near.double()))
    for name, after in delta_weights(layout, turned.double()):
        assert (after - products[name]).norm() < 1e-6 * products[name].norm()


def test_rows_that_come_together_are_turned_to_their_mean(rows):
    layout = layout_of()
    found = recorded_form(layout, rows, None)
    assert torch.allclose(found, canonical_rows(layout, rows, mean_adapter(layout, rows)), atol=1e-5)
    assert recorded_form(layout, rows[:0], None).shape == rows[:0].shape
