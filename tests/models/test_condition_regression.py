"""What latents are expected for a condition, and what is not known of conditions that were left out."""

import pytest
import torch

from pdiff_hf.models import condition_regression
from pdiff_hf.models.condition_regression import ConditionRegression


def make_rows(rows_of=(1, 2, 3, 1), repeats=10, noise=0.1, bent=0.0):
    """Values `(K, 2)` of conditions `(K, 3)` with so many rows each: a line, `bent` by a product of two numbers."""
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(len(rows_of) * repeats, 3, generator=generator)
    units = torch.arange(len(distinct)).repeat_interleave(torch.tensor(rows_of).repeat(repeats))
    conditions = distinct[units]
    values = conditions @ torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.0, 1.0]]) + 3
    values = values + bent * (conditions[:, :1] * conditions[:, 1:2])
    return conditions, values + noise * torch.randn(values.shape, generator=generator), units


def fitted(conditions, values, units):
    regression = ConditionRegression(conditions.shape[1], values.shape[1], 1)
    return regression, regression.fit(conditions, values, units)


@pytest.mark.parametrize("width", [0.0, 0.6])
@pytest.mark.parametrize("penalty", [0.01, 10.0])
@pytest.mark.parametrize("together", [False, True])
def test_what_is_left_out_is_what_the_regression_without_it_does_not_predict(monkeypatch, width, penalty, together):
    monkeypatch.setattr(condition_regression, "WIDTHS", (width,))
    monkeypatch.setattr(condition_regression, "PENALTIES", (penalty,))
    conditions, values, units = make_rows(bent=1.0)
    if together:
        units = units % 20
    _, residuals = fitted(conditions, values, units)
    # Widths are in units of what the distances of the conditions are, with the one that is left out.
    spread = condition_regression._spread(conditions.double().unique(dim=0))
    monkeypatch.setattr(condition_regression, "_spread", lambda conditions: spread)
    for unit in (0, 1, 2, 17):
        own = units == unit
        without, _ = fitted(conditions[~own], values[~own], units[~own])
        expected = values[own] - without(conditions[own])
        # A kernel at the condition itself is a feature that only it has: exact but for the jitter.
        torch.testing.assert_close(residuals[own].float(), expected, atol=2e-3, rtol=1e-2)


def test_a_line_is_found_and_goes_on_beyond_what_was_seen():
    conditions, values, units = make_rows()
    regression, residuals = fitted(conditions, values, units)
    assert residuals.square().mean().sqrt() < 0.13
    beyond = 3 * conditions
    expected = beyond @ torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.0, 1.0]]) + 3
    assert (regression(beyond) - expected).abs().max() < 0.8


def test_what_is_bent_takes_a_kernel():
    conditions, values, units = make_rows(repeats=40, bent=1.0)
    regression, residuals = fitted(conditions, values, units)
    assert len(regression.centers) == 160 and regression.sharpness > 0
    line, _ = torch.linalg.lstsq(torch.cat([conditions, torch.ones(len(conditions), 1)], 1), values)[:2]
    of_line = values - torch.cat([conditions, torch.ones(len(conditions), 1)], 1) @ line
    assert residuals.square().mean() < 0.2 * of_line.square().mean()


def test_of_conditions_that_tell_nothing_the_mean_is_what_is_expected():
    generator = torch.Generator().manual_seed(1)
    conditions, values = torch.randn(200, 3, generator=generator), torch.randn(200, 2, generator=generator)
    regression, residuals = fitted(conditions, values, torch.arange(200))
    torch.testing.assert_close(regression(conditions), values.mean(0).expand(200, -1), atol=0.2, rtol=0)
    assert residuals.square().mean() > 0.97 * values.var(0).mean()


def test_kernels_are_at_no_more_conditions_than_are_allowed(monkeypatch):
    monkeypatch.setattr(condition_regression, "MAX_CENTERS", 50)
    monkeypatch.setattr(condition_regression, "MAX_CHOOSING", 60)
    conditions, values, units = make_rows(repeats=40, bent=1.0)
    regression, residuals = fitted(conditions, values, units)
    assert len(regression.centers) == 50
    # Measured: 0.2 with all.
    assert residuals.square().mean().sqrt() < 0.5


def test_its_tensors_stay_in_float32():
    regression, _ = fitted(*make_rows(bent=1.0))
    conditions = make_rows()[0]
    expected = regression(conditions)
    halved = regression.half()
    assert {buffer.dtype for buffer in halved.buffers()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(halved(conditions), expected)
