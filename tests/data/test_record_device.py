"""Recording from an accelerator: nobody waits for it, and what is recorded is the same to the bit."""

import copy

import pytest
import torch
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.layout import ParameterLayout

FACTORY = "test_record_device:make_model"


def make_model():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make_model()


def steps(model, num=5):
    """Steps that change the head and, in place, what was recorded before."""
    generator = torch.Generator().manual_seed(0)
    weight = model[4].weight
    for step in range(num):
        with torch.no_grad():
            weight += torch.randn(weight.shape, generator=generator).to(weight.device)
        yield step, (weight.sum() / 7).abs()


def record(model, folder, base, select="head", num=5):
    layout = ParameterLayout.from_model(model, select)
    conditions = ConditionSpec.named("label", ["even", "odd"])
    with ParameterRecorder(layout, folder, base, conditions=conditions) as recorder:
        for step, loss in steps(model, num):
            recorder.record(model, step=step, loss=loss, largest=loss.half(), condition=step % 2)
    return ParameterDataset(folder)


@pytest.mark.parametrize("select", ["head", "all"])
def test_rows_from_an_accelerator_are_those_of_the_cpu(pretended, model, tmp_path, select):
    base = BaseModel.imported(FACTORY).save_weights(model, tmp_path / "base")
    expected = record(copy.deepcopy(model), tmp_path / "cpu", base, select)
    found = record(model.to("pretend"), tmp_path / "device", base, select)
    assert torch.equal(found.vectors(), expected.vectors())
    assert found.rows.with_format(None)[:] == expected.rows.with_format(None)[:]
    assert found.conditions()[:, 1].tolist() == [0, 1, 0, 1, 0]


def test_a_checkpoint_is_one_copy_and_no_wait(pretended, model, tmp_path):
    """Also where the rest, here running statistics that might follow the data, is compared every time."""
    base = BaseModel.imported(FACTORY).save_weights(model, tmp_path / "base")
    model.to("pretend")
    layout = ParameterLayout.from_model(model, "head")
    layout.freeze_rest(model)
    with ParameterRecorder(layout, tmp_path / "ds", base) as recorder:
        for step, loss in steps(model, num=9):
            pretended.clear()
            recorder.record(model, step=step, loss=loss)
            # The first one is written at once.
            assert (pretended.to_host.total(), pretended.waits.total()) == (1, 0) or step == 0
        assert recorder.num_recorded == 8
        recorder.flush()
        assert recorder.num_recorded == 9


def test_what_is_wrong_on_an_accelerator_is_said_when_it_is_written(pretended, model, tmp_path):
    model.to("pretend")
    layout = ParameterLayout.from_model(model, "head")
    recorder = ParameterRecorder(layout, tmp_path / "ds")
    recorder.record(model, step=0)
    nn.init.constant_(model[4].weight, float("nan"))
    recorder.record(model, step=1)
    nn.init.ones_(model[4].weight)
    with pytest.raises(ValueError, match=r"checkpoint of step 1: tensor '4\.weight' has a NaN"):
        recorder.record(model, step=2)
    recorder.record(model, step=3)
    recorder.close()
    assert ParameterDataset(tmp_path / "ds").rows.with_format(None)["step"][:] == [0, 3]


def test_running_statistics_that_move_on_an_accelerator_are_refused(pretended, model, tmp_path):
    base = BaseModel.imported(FACTORY).save_weights(model, tmp_path / "base")
    model.to("pretend")
    with pytest.raises(ValueError, match=r"step 3: tensor '1\.running_mean' is not in the layout, but differs"):
        with ParameterRecorder(ParameterLayout.from_model(model, "head"), tmp_path / "ds", base) as recorder:
            for step, _ in steps(model):
                if step == 3:
                    model[1].running_mean += 0.5
                recorder.record(model, step=step)


def test_the_error_of_a_training_is_the_one_to_be_seen_and_its_last_checkpoint_is_kept(pretended, model, tmp_path):
    model.to("pretend")
    with pytest.raises(KeyError, match="of the training"):
        with ParameterRecorder(ParameterLayout.from_model(model, "head"), tmp_path / "ds") as recorder:
            for step, _ in steps(model, num=3):
                recorder.record(model, step=step)
            raise KeyError("of the training")
    assert len(ParameterDataset(tmp_path / "ds")) == 3
