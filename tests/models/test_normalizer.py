import pytest
import torch
from torch import nn

from pdiff_hf import ParameterLayout
from pdiff_hf.models.normalizer import ParameterNormalizer


def vectors(rows=16, columns=12):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 3 + 5


@pytest.mark.parametrize("mode", ["per_tensor", "per_parameter"])
def test_normalised_data_have_zero_mean_and_unit_deviation(mode):
    normalizer = ParameterNormalizer(12, mode)
    normalizer.fit(vectors())
    normalized = normalizer.normalize(vectors())
    assert normalized.mean().abs() < 1e-5
    # The unbiased deviation per parameter, the pooled one per tensor.
    assert normalized.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("mode", ["per_tensor", "per_parameter"])
def test_denormalize_inverts_normalize(mode):
    normalizer = ParameterNormalizer(12, mode)
    normalizer.fit(vectors())
    # Two float32 operations each way on values near 10.
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(vectors())), vectors(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("mode", ["per_tensor", "per_parameter"])
def test_constant_tensor_comes_back_exactly_whatever_the_decoder_says(mode):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    layout = ParameterLayout.from_model(model).to_dict()
    rows = torch.randn(8, 14, generator=torch.Generator().manual_seed(0))
    rows[:, 0:6] = 0.1
    normalizer = ParameterNormalizer(14, mode, layout)
    normalizer.fit(rows)
    decoded = normalizer.denormalize(torch.randn(8, 14, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(decoded[:, 0:6], rows[:, 0:6])


def test_running_variance_is_normalised_in_log_space_and_stays_positive():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    layout = ParameterLayout.from_model(model, "1.*", buffers=True)
    variance = next(spec for spec in layout.tensors if spec.name == "1.running_var")
    assert variance.transform == "log"
    own = slice(variance.offset, variance.offset + variance.numel)
    rows = torch.randn(8, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    rows[:, own] = torch.logspace(-6, 6, 16).reshape(8, 2)
    normalizer = ParameterNormalizer(layout.num_parameters, "per_parameter", layout.to_dict())
    normalizer.fit(rows)
    torch.testing.assert_close(normalizer.mean[own], rows[:, own].log().mean(0))
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(rows)), rows, rtol=1e-5, atol=1e-6)
    assert (normalizer.denormalize(torch.full_like(rows, -3.0))[:, own] > 0).all()


@pytest.mark.parametrize("mode", ["per_tensor", "per_parameter"])
def test_block_of_columns_is_normalised_like_the_whole(mode):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    layout = ParameterLayout.from_model(model, buffers=True)
    size = layout.num_parameters
    rows = torch.rand(8, size, generator=torch.Generator().manual_seed(0)) + 0.5
    normalizer = ParameterNormalizer(size, mode, layout.to_dict())
    normalizer.fit(rows)
    whole = normalizer.normalize(rows)
    for start in range(0, size, 3):
        assert torch.equal(normalizer.normalize(rows[:, start : start + 3], start), whole[:, start : start + 3])


@pytest.mark.parametrize("mode", ["per_tensor", "per_parameter"])
def test_tensor_without_values_changes_nothing(mode):
    model = nn.ParameterDict({"a": torch.zeros(5), "empty": torch.zeros(0, 4), "b": torch.zeros(7)})
    normalizers = ParameterNormalizer(12, mode, ParameterLayout.from_model(model).to_dict())
    without = ParameterLayout.from_model(nn.ParameterDict({"a": torch.zeros(5), "b": torch.zeros(7)}))
    expected = ParameterNormalizer(12, mode, without.to_dict())
    normalizers.fit(vectors())
    expected.fit(vectors())
    assert torch.equal(normalizers.normalize(vectors()), expected.normalize(vectors()))


def test_one_checkpoint_is_refused():
    with pytest.raises(ValueError, match="at least 2 checkpoints, got 1"):
        ParameterNormalizer(12).fit(vectors(rows=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_stay_in_single_precision(dtype):
    rows = 1000 + 0.01 * vectors()
    normalizer = ParameterNormalizer(rows.shape[1])
    normalizer.fit(rows)
    expected = normalizer.denormalize(normalizer.normalize(rows))
    normalizer.to(dtype)
    assert normalizer.mean.dtype == normalizer.std.dtype == torch.float32
    assert torch.equal(normalizer.denormalize(normalizer.normalize(rows)), expected)


def test_statistics_of_columns_are_those_of_their_tensors():
    layout = {"tensors": [{"offset": o, "shape": [n], "transform": "identity"} for o, n in ((0, 3), (3, 0), (3, 5))]}
    normalizer = ParameterNormalizer(8, "per_tensor", layout)
    normalizer.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    for start, width in ((0, 8), (1, 4), (3, 2), (4, 4), (0, 3)):
        found, _ = normalizer._statistics(start, width)
        assert found.tolist() == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0][start : start + width]
