"""Which rows of a dataset are brought into canonical form, and which stay as they were given."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pdiff_hf import ParameterDataset, ParameterLayout, ParameterRecorder, save_parameter_dataset
from pdiff_hf.adapters.gauge import canonical_rows, lora_pairs, mean_adapter
from pdiff_hf.data.writer import stream_parameter_dataset


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=3, target_modules=["0"], modules_to_save=["1"])
    return get_peft_model(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)), config)


@pytest.fixture
def layout(model) -> ParameterLayout:
    return ParameterLayout.from_model(model, "adapter")


@pytest.fixture
def rows(layout) -> torch.Tensor:
    return torch.randn(4, layout.num_parameters, generator=torch.Generator().manual_seed(1))


def stored(folder) -> torch.Tensor:
    return ParameterDataset(folder).vectors()


def test_factors_have_a_gauge_and_heads_have_none(layout):
    marked = {spec.name.partition("base_model.model.")[2]: spec.transform for spec in layout.tensors}
    assert marked == {
        "0.lora_A.default.weight": "canonical_lora",
        "0.lora_B.default.weight": "canonical_lora",
        "1.modules_to_save.default.weight": "identity",
        "1.modules_to_save.default.bias": "identity",
    }


def test_recorded_networks_are_canonical_rows_and_go_on_as_they_are(model, layout, rows, tmp_path):
    with ParameterRecorder(layout, tmp_path / "params") as recorder:
        for step, row in enumerate(rows):
            layout.load_into(model, row)
            recorder.record(model, step=step)
            assert torch.equal(layout.flatten(model), row)
    found = stored(tmp_path / "params")
    assert torch.allclose(found, canonical_rows(layout, rows, rows[0]), atol=1e-5)
    assert (found - rows).abs().max() > 0.1


def test_rows_that_are_saved_and_appended_are_canonical(layout, rows, tmp_path):
    save_parameter_dataset(rows[:2], layout, tmp_path / "params", columns={"run": ["a"] * 2})
    ParameterDataset(tmp_path / "params").append(rows[2:], {"run": ["b"] * 2})
    found, first = stored(tmp_path / "params"), mean_adapter(layout, rows[:2])
    assert torch.allclose(found[:2], canonical_rows(layout, rows[:2], first), atol=1e-5)
    assert torch.allclose(found[2:], canonical_rows(layout, rows[2:], found[:2].mean(0)), atol=1e-5)


def test_runs_that_are_recorded_later_are_turned_to_the_mean_of_the_others(model, layout, rows, tmp_path):
    save_parameter_dataset(rows[:2], layout, tmp_path / "params", columns={"run": ["a"] * 2})
    for resume in (False, True):
        recorder = ParameterRecorder(layout, tmp_path / "params", run="b")
        if resume:
            # Whatever there is of the run itself by now, its frame stays.
            recorder.resume(0)
        with recorder:
            for step, row in [*enumerate(rows[2:])][int(resume) :]:
                layout.load_into(model, row)
                recorder.record(model, step=step)
    mean = stored(tmp_path / "params")[:2].mean(0)
    assert torch.allclose(stored(tmp_path / "params")[2:], canonical_rows(layout, rows[2:], mean), atol=1e-4)


def test_rows_turned_to_their_mean_are_nearer_to_each_other_than_turned_to_one_or_not_at_all(layout):
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(layout.num_parameters, generator=generator) + 0.7 * torch.randn(
        40, layout.num_parameters, generator=generator
    )

    def spread(found):
        factors = torch.cat([part.flatten(1) for pair in lora_pairs(layout) for part in pair.factors(found)], 1)
        return factors.var(0).sum().item()

    turned = canonical_rows(layout, rows, mean_adapter(layout, rows))
    others = [canonical_rows(layout, rows), *(canonical_rows(layout, rows, row) for row in rows[:5])]
    assert spread(turned) < 0.98 * min(map(spread, others))
    # It is the mean of what is turned to it, and says nothing of how products are written.
    again = canonical_rows(layout, rows, turned.mean(0))
    assert (again - turned).norm() < 0.1 * turned.std(0).norm() * len(rows) ** 0.5
    torch.testing.assert_close(mean_adapter(layout, canonical_rows(layout, rows)), mean_adapter(layout, rows))


def test_streamed_rows_stay_as_they_are(layout, rows, tmp_path):
    # Those that a generator has drawn are what it gave.
    batches = ((rows[first : first + 2], {"run": ["a"] * 2, "step": [first, first + 1]}) for first in (0, 2))
    stream_parameter_dataset(batches, layout, tmp_path / "params")
    assert torch.equal(stored(tmp_path / "params"), rows)
