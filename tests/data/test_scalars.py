"""Any single number is a metric; anything else is named, before anything is written."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.scalars import to_number
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import LAYOUT, make_vectors

NUMBERS = [
    2,
    2.0,
    Fraction(4, 2),
    Decimal("2"),
    np.float32(2),
    np.int64(2),
    np.array(2.0),
    np.array([[2]]),
    torch.tensor(2.0, requires_grad=True),
    torch.tensor([2.0], dtype=torch.bfloat16),
    torch.tensor(2.0, dtype=torch.float16),
    torch.tensor(2),
    torch.nn.Parameter(torch.tensor([[2.0]])),
]
NO_NUMBERS = [
    (torch.ones(2), r"a Tensor of torch\.float32 and shape \(2,\)"),
    (torch.zeros(0), r"a Tensor .*shape \(0,\)"),
    (np.ones((2, 1)), r"a ndarray of float64 and shape \(2, 1\)"),
    (torch.tensor(1j), r"a Tensor of torch\.complex64"),
    (1j, "1j of type complex"),
    ("0.5", "'0.5' of type str"),
    ([0.5], r"\[0.5\] of type list"),
    ({"a": 1}, ".* of type dict"),
]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_numbers_of_all_kinds_are_taken(tmp_path, number):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", seed=number) as recorder:
        recorder.record(make_vectors()[0], step=number, epoch=number, loss=number, lr=number)
    row = ParameterDataset(tmp_path / "ds").rows.with_format(None)[0]
    assert [row[name] for name in ("seed", "step", "epoch", "train_loss", "lr")] == [2] * 5


def test_truth_values_are_numbers_and_none_is_missing(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds") as recorder:
        recorder.record(make_vectors()[0], step=0, best=True, rare=None)
        recorder.record(make_vectors()[1], step=1, best=torch.tensor(False), rare=1)
    rows = ParameterDataset(tmp_path / "ds").rows.with_format(None)
    assert (rows["best"][:], rows["rare"][:]) == ([1, 0], [None, 1])


@pytest.mark.parametrize("value, found", NO_NUMBERS)
def test_what_is_no_number_is_named_before_anything_is_written(tmp_path, value, found):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    with pytest.raises(ValueError, match=rf"step 4: metric 'lr': expected one real number, found {found}"):
        recorder.record(make_vectors()[0], step=4, lr=value)
    columns = {"lr": [0.5] * 5 + [value]}
    with pytest.raises(ValueError, match=rf"row 5: metric 'lr': expected one real number, found {found}"):
        save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns)
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": 0.5}, "step: expected a whole number, found 0.5"),
        ({"step": None}, "step: expected a whole number, found None"),
        ({"step": "3"}, "step: expected one real number, found '3'"),
        ({"step": 2**63}, "step: expected a whole number"),
        ({"step": 0, "epoch": "one"}, "'epoch': expected one real number"),
        ({"step": 0, "epoch": float("nan")}, "'epoch' is nan, expected a finite number"),
        ({"step": 0, "lr": float("inf")}, "metric 'lr' is inf, expected a finite number"),
        ({"step": 0, "lr": 1e39}, r"metric 'lr' is 1e\+39, expected a number that float32 holds"),
        ({"step": 0, "seed": 1}, "a metric with a name of its own, found 'seed'"),
        ({"step": 0, "run": "b"}, "a metric with a name of its own, found 'run'"),
    ],
)
def test_columns_are_checked_before_anything_is_written(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        ParameterRecorder(LAYOUT, tmp_path / "ds").record(make_vectors()[0], **values)
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"run": [1] * 6}, "row 0: 'run': expected a text, found 1 of type int"),
        ({"seed": [0.5] * 6}, "row 0: 'seed': expected a whole number"),
        ({"lr": 0.5}, "column 'lr': expected 6 values, found 0.5"),
        ({"lr": torch.tensor(0.5)}, "column 'lr': expected 6 values"),
        ({"lr": "abcdef"}, "column 'lr': expected 6 values"),
        ({"lr": [0.5]}, "column 'lr': expected 6 values, found 1"),
    ],
)
def test_columns_of_a_dataset_are_checked(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns)


def test_columns_may_be_tensors_and_arrays(tmp_path):
    columns = {"lr": torch.arange(6).bfloat16(), "step": np.arange(6), "epoch": torch.arange(6) / 2}
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns)
    rows = ParameterDataset(tmp_path / "ds").rows.with_format(None)
    assert rows["lr"][:] == rows["step"][:] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [torch.tensor(1.0, device="meta"), np.ma.masked, np.ma.array([1.0], mask=[True])])
def test_scalars_without_a_value_are_refused(value):
    with pytest.raises(ValueError, match="loss: expected one real number, found a"):
        to_number(value, "loss")
