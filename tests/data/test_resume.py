"""Recordings that go on: what a training repeats is in the dataset once."""

import gc
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from pdiff_hf.data import record as record_module
from pdiff_hf.data import shards
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.record import ParameterRecorder, ParameterRecorderCallback, finish_recording
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, D


def value(step, timeline):
    return torch.full((D,), float(100 * timeline + step))


def record(recorder, steps, timeline):
    for step in steps:
        recorder.record(value(step, timeline), step=step, loss=0.5)


def rows(folder):
    """Run, step and timeline of every row."""
    found = ParameterDataset(folder).rows.with_format("torch")
    return [(row["run"], row["step"].item(), row["parameters"][0].item() // 100) for row in found]


def expected(first, second, run="run-0"):
    return [(run, step, 0) for step in first] + [(run, step, 1) for step in second]


def left(folder, steps, how, **options):
    """A recording that ended in one of the ways in which recordings end."""
    recorder = ParameterRecorder(LAYOUT, folder, **options)
    record(recorder, steps, 0)
    if how == "closed":
        recorder.close()
    elif how == "between":
        # Killed when its rows were in the shards, and the stream was still there.
        stream = (folder / "recording.arrow").read_bytes()
        recorder.close()
        (folder / "recording.arrow").write_bytes(stream)
    else:
        die(recorder)
    # So that a killed one is not closed meanwhile.
    return recorder


def die(recorder):
    """What the end of the process does."""
    recorder._held.release()
    del record_module._recording[os.path.realpath(recorder.output_dir)]


@pytest.mark.parametrize("how", ["closed", "killed", "between"])
@pytest.mark.parametrize("checkpoint", [0, 4, 6, 9])
def test_rows_behind_the_checkpoint_are_replaced_once(tmp_path, how, checkpoint):
    _kept = left(tmp_path / "ds", range(1, 8), how)
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=checkpoint) as recorder:
        record(recorder, range(checkpoint + 1, 13), 1)
    assert rows(tmp_path / "ds") == expected(range(1, min(8, checkpoint + 1)), range(checkpoint + 1, 13))
    assert ParameterDataset(tmp_path / "ds").stats["num_rows"] == len(rows(tmp_path / "ds"))


@pytest.mark.parametrize("how", ["killed", "between"])
def test_resumed_recording_that_was_killed_keeps_its_rows_and_goes_on_again(tmp_path, how):
    left(tmp_path / "ds", range(1, 8), "closed")
    _kept = left(tmp_path / "ds", range(5, 10), how, resume_from=4)
    with pytest.warns(UserWarning, match="complete rows"):
        assert [step for _, step, _ in rows(tmp_path / "ds")] == list(range(1, 10))
    finish_recording(tmp_path / "ds")
    assert [step for _, step, _ in rows(tmp_path / "ds")] == list(range(1, 10))
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=8) as recorder:
        record(recorder, range(9, 11), 1)
    assert rows(tmp_path / "ds") == expected(range(1, 9), range(9, 11))


def test_rows_of_the_first_new_step_and_behind_it_are_replaced_whatever_the_checkpoint(tmp_path):
    left(tmp_path / "ds", range(10), "closed")
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=7) as recorder:
        record(recorder, range(5, 8), 1)
    assert rows(tmp_path / "ds") == expected(range(5), range(5, 8))


def test_rows_stay_until_the_next_checkpoint_is_recorded(tmp_path):
    left(tmp_path / "ds", range(5), "closed")
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=1):
        assert rows(tmp_path / "ds") == expected(range(5), [])
    with pytest.raises(KeyError), ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=1):
        raise KeyError
    assert rows(tmp_path / "ds") == expected(range(5), [])


def test_other_runs_and_shards_stay_to_the_bit(tmp_path):
    left(tmp_path / "ds", range(4), "closed", run="a")
    left(tmp_path / "ds", range(4), "closed", run="b")
    first = shards.find_shards(tmp_path / "ds")[0].read_bytes()
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="b", resume_from=1) as recorder:
        record(recorder, range(2, 6), 1)
    assert shards.find_shards(tmp_path / "ds")[0].read_bytes() == first
    assert rows(tmp_path / "ds") == expected(range(4), [], "a") + expected(range(2), range(2, 6), "b")
    keys = [pq.read_schema(file).metadata for file in shards.find_shards(tmp_path / "ds")]
    assert not any(shards.KNOWN_ROWS in metadata for metadata in keys)


def test_all_rows_of_a_run_may_be_replaced(tmp_path):
    left(tmp_path / "ds", range(1, 4), "closed")
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=0) as recorder:
        record(recorder, range(1, 3), 1)
    assert rows(tmp_path / "ds") == expected([], range(1, 3))


def test_run_that_is_not_there_begins(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=4) as recorder:
        record(recorder, [5], 1)
    assert rows(tmp_path / "ds") == expected([], [5])


def test_open_and_closed_recorders_are_resumed(tmp_path):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    record(recorder, range(1, 6), 0)
    recorder.resume(3)
    record(recorder, range(4, 6), 1)
    recorder.close()
    recorder.resume(5)
    record(recorder, [6], 1)
    recorder.close()
    assert rows(tmp_path / "ds") == expected(range(1, 4), range(4, 7))


@pytest.mark.parametrize(
    "run, following", [("run-0", "run-1"), ("run-9", "run-10"), ("mine", "mine-0"), ("a-b", "a-b-0")]
)
def test_next_run_has_the_next_free_name(tmp_path, run, following):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds", run=run)
    record(recorder, [0], 0)
    recorder.next_run()
    record(recorder, [0], 0)
    recorder.close()
    assert [found for found, _, _ in rows(tmp_path / "ds")] == [run, following]


def test_step_to_go_on_from_is_a_whole_number(tmp_path):
    with pytest.raises(ValueError, match="resume: expected a whole number"):
        ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=0.5)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp3(4, [4], 3)

    def forward(self, x=None, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Stopped(Exception):
    pass


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stopped


def make_trainer(folder, stop=None, **options):
    model = Classifier()
    data = [{"x": torch.randn(4), "labels": index % 3} for index in range(16)]
    recorder = ParameterRecorder(ParameterLayout.from_model(model), folder / "ds")
    arguments = TrainingArguments(
        str(folder / "out"),
        max_steps=12,
        save_steps=5,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    recording, stopping = ParameterRecorderCallback(recorder, **options), StopAt(stop)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[recording, stopping])
    return trainer, recorder, stopping


def steps_of(folder):
    dataset = ParameterDataset(folder / "ds").rows.with_format(None)
    return dataset["run"][:], dataset["step"][:]


@pytest.mark.parametrize("is_dead", [True, False])
def test_resumed_trainer_goes_on_with_its_run(tmp_path, is_dead):
    stopped, recorder, _ = make_trainer(tmp_path, stop=7)
    with pytest.raises(Stopped):
        stopped.train()
    if is_dead:
        die(recorder)
    else:
        # Nobody has it any more, but nobody has closed it either.
        del stopped, recorder
        gc.collect()
    again, *_ = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert steps_of(tmp_path) == (["run-0"] * 12, list(range(1, 13)))
    dataset = ParameterDataset(tmp_path / "ds")
    assert torch.equal(dataset.vectors()[-1], dataset.layout.flatten(again.model))


def test_trainer_that_was_interrupted_goes_on_with_the_same_callback(tmp_path):
    trainer, _, stopping = make_trainer(tmp_path, stop=7)
    with pytest.raises(Stopped):
        trainer.train()
    stopping.step = None
    trainer.train(resume_from_checkpoint=True)
    assert steps_of(tmp_path) == (["run-0"] * 12, list(range(1, 13)))


def test_trainer_that_trains_again_records_another_run(tmp_path):
    trainer, *_ = make_trainer(tmp_path, every=3)
    trainer.train()
    trainer.train()
    assert steps_of(tmp_path) == (["run-0"] * 4 + ["run-1"] * 4, [3, 6, 9, 12] * 2)


def test_another_training_with_the_name_of_a_run_is_refused_before_its_first_step(tmp_path):
    make_trainer(tmp_path)[0].train()
    again, *_ = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"already holds run 'run-0'; choose another .*resume_from_checkpoint"):
        again.train()
    assert again.state.global_step == 0
    assert steps_of(tmp_path)[1] == list(range(1, 13))


def test_old_recordings_are_read_as_before(tmp_path):
    _kept = left(tmp_path / "ds", range(3), "killed")
    file = tmp_path / "ds" / "recording.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all().replace_schema_metadata(None)
    os.unlink(file)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)
    finish_recording(tmp_path / "ds")
    assert rows(tmp_path / "ds") == expected(range(3), [])
