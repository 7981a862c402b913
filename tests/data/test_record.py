import json
import math
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from pdiff_hf.base_model import BaseModel
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data import shards
from pdiff_hf.data.dataset import ParameterDataset, load_base_model, load_parameter_dataset
from pdiff_hf.data.record import ParameterRecorder, ParameterRecorderCallback, finish_recording
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors, snapshot


def record(folder, rows=6, seed=0, **options):
    with ParameterRecorder(LAYOUT, folder, seed=seed, **options) as recorder:
        for step, vector in enumerate(make_vectors(rows, seed)):
            recorder.record(vector, step=step, loss=0.5)
    return folder


def test_recorded_rows_are_read_back_to_the_bit(tmp_path):
    network, rows = mlp3(**NETWORK), []
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="a", seed=3, metadata={"task": {"x": 1}}) as recorder:
        for step in range(3):
            nn.init.normal_(network[1].weight)
            rows.append(LAYOUT.flatten(network))
            states = [network, network.state_dict(), rows[-1]]
            recorder.record(states[step], step=10 * step, epoch=step / 2, loss=1.5, accuracy=0.25, test_accuracy=0.5)
        assert recorder.num_recorded == 3
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), torch.stack(rows))
    rows = dataset[:]
    assert (rows["run"], rows["seed"].tolist()) == (["a"] * 3, [3] * 3)
    assert (rows["step"].tolist(), rows["epoch"].tolist()) == ([0, 10, 20], [0, 0.5, 1])
    metrics = {"train_loss": 1.5, "val_accuracy": 0.25, "test_accuracy": 0.5}
    assert {name: rows[name].tolist() for name in metrics} == {name: [v] * 3 for name, v in metrics.items()}
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    assert (stats["num_rows"], stats["runs"], stats["metadata"]) == (3, ["a"], {"task": {"x": 1}})


def test_what_judges_networks_and_numbers_of_any_name_are_recorded(tmp_path):
    task = {"kind": "function", "function": "nets.py:energy"}
    with ParameterRecorder(LAYOUT, tmp_path / "ds", task=task, metadata={"note": "x"}) as recorder:
        recorder.record(make_vectors(1)[0], step=0, energy=-13.6, val_mse=torch.tensor(2.5))
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.task == task and dataset.metadata["note"] == "x"
    assert {name: values.tolist() for name, values in dataset.metrics.items()} == {
        "energy": [pytest.approx(-13.6)],
        "val_mse": [2.5],
    }


def test_closed_folder_holds_no_leftovers(tmp_path):
    record(tmp_path / "ds")
    names = {str(path.relative_to(tmp_path / "ds")) for path in (tmp_path / "ds").rglob("*") if path.is_file()}
    assert names == {"data/train-00000.parquet", "layout.json", "stats.json", "README.md"}


def test_base_model_is_copied_into_the_folder(tmp_path):
    network = mlp3(**NETWORK)
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(network, tmp_path / "x")
    record(tmp_path / "ds", base_model=base)
    (tmp_path / "x" / base.weights).unlink()
    assert torch.equal(load_base_model(tmp_path / "ds").build()[1].weight, network[1].weight)


def test_memory_stays_constant_while_recording_and_closing(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**20)
    layout = ParameterLayout.from_model(nn.Linear(2**16 - 1, 1))
    pool = pa.default_memory_pool()
    baseline = pool.bytes_allocated()
    recorder = ParameterRecorder(layout, tmp_path / "ds")
    for step in range(64):
        recorder.record(torch.full((layout.num_parameters,), float(step)), step=step)
        assert pool.bytes_allocated() - baseline < 2**19
    assert (tmp_path / "ds" / "recording.arrow").stat().st_size > 64 * 4 * layout.num_parameters
    peaks = []
    write_shard = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", lambda *a: (peaks.append(pool.bytes_allocated()), write_shard(*a)))
    recorder.close()
    assert len(peaks) == 16
    assert max(peaks) - baseline < 4 * 2**20
    rows = [row["parameters"] for row in load_parameter_dataset(tmp_path / "ds", streaming=True)[0]]
    assert [row[0].item() for row in rows] == list(range(64))


KILLED = """
import os, signal, sys
import torch
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.layout import ParameterLayout, TensorSpec

layout = ParameterLayout((TensorSpec("weight", (4, 5), 0),))
recorder = ParameterRecorder(layout, sys.argv[1], run="killed", seed=1)
for step in range(7):
    recorder.record(torch.full((20,), float(step)), step=step, loss=0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_recording_is_readable_and_can_be_finished(tmp_path):
    folder = tmp_path / "ds"
    code = subprocess.run([sys.executable, "-c", KILLED, str(folder)], timeout=300).returncode
    assert code == -signal.SIGKILL
    for streaming, kind in ((False, Dataset), (True, IterableDataset)):
        with pytest.warns(UserWarning, match=r"recording\.arrow was not closed"):
            dataset, layout = load_parameter_dataset(folder, streaming=streaming)
        assert isinstance(dataset, kind)
        assert [row["parameters"][0].item() for row in dataset] == list(range(7))
    finish_recording(folder)
    dataset, _ = load_parameter_dataset(folder)
    assert torch.equal(dataset_vectors(dataset, layout), torch.arange(7.0)[:, None].expand(7, 20))
    assert {path.name for path in folder.iterdir()} == {"data", "layout.json", "stats.json", "README.md"}
    assert load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).features == dataset.features


def cut_off(folder, rows=3, run="cut", seed=1):
    """A folder as a killed process leaves it; the recorder is given back so that it is not closed."""
    recorder = ParameterRecorder(LAYOUT, folder, run=run, seed=seed)
    for step, vector in enumerate(make_vectors(rows, seed)):
        recorder.record(vector, step=step, loss=0.5)
    recorder._held.release()
    return recorder


def test_row_that_was_cut_off_is_dropped(tmp_path):
    cut_off(tmp_path / "ds")
    file = tmp_path / "ds" / "recording.arrow"
    size = file.stat().st_size
    os.truncate(file, size - 8)
    with pytest.warns(UserWarning, match="complete rows"):
        dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors(3, seed=1)[:2])


@contextmanager
def room_for(size):
    """No file may become larger, as where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("rows, room", [(0, 0), (0, 100), (2, 0), (2, 1), (2, 100 + 4 * D)])
def test_row_for_which_there_is_no_room_is_an_error_and_those_behind_it_are_kept(tmp_path, rows, room):
    folder, vectors = tmp_path / "ds", make_vectors(4)
    recorder = ParameterRecorder(LAYOUT, record(folder, run="before"), run="new")
    for step in range(rows):
        recorder.record(vectors[step], step=step)
    file = folder / "recording.arrow"
    before = file.read_bytes() if rows else b""
    with pytest.raises(OSError, match="File too large") as error, room_for(len(before) + room):
        recorder.record(vectors[rows], step=rows)
    assert recorder.num_recorded == rows
    if rows:
        assert error.value.filename == str(file)
        assert file.read_bytes() == before
    for step in range(rows, 4):
        recorder.record(vectors[step], step=step)
    recorder.close()
    dataset, layout = load_parameter_dataset(folder)
    assert dataset[:]["run"] == ["before"] * 6 + ["new"] * 4
    assert torch.equal(dataset_vectors(dataset, layout)[6:], vectors)


@pytest.mark.parametrize("size", [0, 4, 100])
def test_recording_without_a_complete_row_is_an_error_and_no_obstacle(tmp_path, size):
    cut_off(tmp_path / "ds", rows=1)
    os.truncate(tmp_path / "ds" / "recording.arrow", size)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds no complete row"):
        load_parameter_dataset(tmp_path / "ds")
    record(tmp_path / "ds", run="cut")
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 6


def test_next_run_keeps_what_a_killed_run_left(tmp_path):
    cut_off(tmp_path / "ds")
    record(tmp_path / "ds", rows=4, run="next", seed=2)
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert dataset[:]["run"] == ["cut"] * 3 + ["next"] * 4
    expected = torch.cat([make_vectors(3, seed=1), make_vectors(4, seed=2)])
    assert torch.equal(dataset_vectors(dataset, layout), expected)


def test_killed_while_closing_gives_no_row_twice(tmp_path, monkeypatch):
    recorder = cut_off(tmp_path / "ds", rows=5)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    recorder._file.close()
    batches = list(shards.recorded_batches(tmp_path / "ds"))
    shards.append_shards(batches[:3], tmp_path / "ds")
    with pytest.warns(UserWarning, match="not closed"):
        dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors(5, seed=1))
    finish_recording(tmp_path / "ds")
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors(5, seed=1))


def test_finishing_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a recording at .*recording\.arrow"):
        finish_recording(record(tmp_path / "ds"))


def test_second_run_is_appended(tmp_path):
    record(tmp_path / "ds", run="a", seed=1, metadata={"task": 1})
    first = (tmp_path / "ds" / "data" / "train-00000.parquet").read_bytes()
    record(tmp_path / "ds", rows=4, run="b", seed=2, metadata={"collect": 2})
    assert (tmp_path / "ds" / "data" / "train-00000.parquet").read_bytes() == first
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), torch.cat([make_vectors(6, 1), make_vectors(4, 2)]))
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    assert (stats["num_rows"], stats["runs"]) == (10, ["a", "b"])
    assert stats["metadata"] == {"task": 1, "collect": 2}


def test_runs_with_other_metrics_get_one_table_in_plain_datasets_too(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="a") as recorder:
        for step, vector in enumerate(make_vectors(6)):
            recorder.record(vector, step=step, loss=0.5, test_accuracy=0.5)
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="b") as recorder:
        recorder.record(make_vectors(1)[0], step=0, val_nll=2.0)
    dataset, _ = load_parameter_dataset(tmp_path / "ds")
    plain = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    streamed = load_parameter_dataset(tmp_path / "ds", streaming=True)[0]
    for rows in (dataset.with_format(None), plain, streamed.with_format(None)):
        assert [row["test_accuracy"] for row in rows] == [0.5] * 6 + [None]
        assert [row["val_nll"] for row in rows] == [None] * 6 + [2.0]
    assert plain.features == dataset.features


@pytest.mark.parametrize("unfinished", [False, True])
def test_run_that_is_there_already_is_refused_and_nothing_changes(tmp_path, unfinished):
    if unfinished:
        cut_off(tmp_path / "ds", run="a")
    else:
        record(tmp_path / "ds", run="a")
    before = snapshot(tmp_path / "ds")
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds", run="a")
    with pytest.raises(ValueError, match="already holds run 'a'"):
        recorder.record(make_vectors()[0], step=9, loss=0.5)
    with pytest.raises(ValueError, match="already holds run 'a'"), recorder:
        pass
    assert snapshot(tmp_path / "ds") == before


def test_another_layout_is_refused_and_nothing_changes(tmp_path):
    before = snapshot(record(tmp_path / "ds", run="a"))
    with pytest.raises(ValueError, match=r"different networks: tensor .* is generated in .*; choose another folder"):
        ParameterRecorder(ParameterLayout.from_model(nn.Linear(2, 3)), tmp_path / "ds", run="b")
    assert snapshot(tmp_path / "ds") == before


def test_another_base_model_is_refused_but_for_whole_networks(tmp_path):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    first, other = (base.save_weights(mlp3(**NETWORK), tmp_path / name) for name in ("x", "y"))
    head = ParameterLayout.from_model(mlp3(**NETWORK), "head")
    save_parameter_dataset(torch.zeros(2, head.num_parameters), head, tmp_path / "head", first)
    with pytest.raises(ValueError, match=r"tensor '\S+' of the base model differs.*; choose another"):
        ParameterRecorder(head, tmp_path / "head", other, run="b")
    # No tensor of the base model is left in them.
    record(tmp_path / "ds", run="a", base_model=first)
    ParameterRecorder(LAYOUT, tmp_path / "ds", other, run="b")


def test_shards_without_layout_are_refused(tmp_path):
    (record(tmp_path / "ds") / "layout.json").unlink()
    with pytest.raises(ValueError, match=r"without layout\.json"):
        ParameterRecorder(LAYOUT, tmp_path / "ds", run="b")


def test_second_recorder_on_a_folder_in_use_is_refused_and_the_first_goes_on(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="a") as first:
        first.record(make_vectors()[0], step=0)
        second = ParameterRecorder(LAYOUT, tmp_path / "ds", run="b")
        with pytest.raises(ValueError, match="is being written to by"):
            second.record(make_vectors()[1], step=0)
        with pytest.raises(ValueError, match="is being written to by"):
            finish_recording(tmp_path / "ds")
        first.record(make_vectors()[2], step=1)
    second.record(make_vectors()[1], step=0)
    second.close()
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors()[[0, 2, 1]])


def test_recorder_of_another_process_that_records_nothing_leaves_no_trace(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds"):
        pass
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_checkpoint_is_refused_by_tensor_and_the_rest_is_kept(tmp_path, value):
    network = mlp3(**NETWORK)
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    recorder.record(network, step=0)
    with torch.no_grad():
        network[3].bias[1] = value
    with pytest.raises(ValueError, match=r"step 7: tensor '3\.bias' has a NaN or infinite value"), recorder:
        recorder.record(network, step=7)
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 1


def test_non_finite_metric_is_refused_by_name(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds") as recorder:
        with pytest.raises(ValueError, match="step 2: metric 'train_loss' is nan"):
            recorder.record(make_vectors()[0], step=2, loss=math.nan)


def test_metrics_that_change_within_a_run_are_refused(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds") as recorder:
        recorder.record(make_vectors()[0], step=0, loss=1.0)
        with pytest.raises(ValueError, match=r"step 1: expected the columns .*'train_loss'"):
            recorder.record(make_vectors()[1], step=1, accuracy=1.0)
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 1


def test_state_that_does_not_fit_is_named(tmp_path):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    with pytest.raises(ValueError, match=r"tensor '1\.weight'"):
        recorder.record(nn.Linear(2, 2), step=0)
    with pytest.raises(ValueError, match="expected a vector of shape"):
        recorder.record(torch.zeros(D - 1), step=0)
    assert not (tmp_path / "ds").exists()


def test_closed_recorder_takes_no_more(tmp_path):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    recorder.record(make_vectors()[0], step=0)
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match="'run-0' is closed"):
        recorder.record(make_vectors()[1], step=1)


def test_run_is_appended_to_a_saved_dataset(tmp_path):
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    with pytest.raises(ValueError, match="already holds run 'run-0'"):
        ParameterRecorder(LAYOUT, tmp_path / "ds").check_new()
    record(tmp_path / "ds", run="run-1")
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 12


def test_trainer_callback_records_every_second_step(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=2,
    )
    model = ViTForImageClassification(config)
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": index % 2} for index in range(16)]
    layout = ParameterLayout.from_model(model, "head")
    start = layout.flatten(model)
    base = BaseModel.transformers(config, "ViTForImageClassification").save_weights(model, tmp_path / "base")
    layout.freeze_rest(model)
    recorder = ParameterRecorder(layout, tmp_path / "ds", base, conditions=ConditionSpec.named("label", ["a", "b"]))
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    metrics = {"metrics": lambda model: {"size": model.num_parameters()}, "condition": "b"}
    callback = ParameterRecorderCallback(recorder, every=2, **metrics)
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert dataset[:]["step"].tolist() == [2, 4, 6, 8]
    assert dataset[:]["epoch"].tolist() == [0.5, 1, 1.5, 2]
    assert dataset[:]["condition"].tolist() == [[0, 1]] * 4
    assert dataset[:]["size"].tolist() == [model.num_parameters()] * 4
    vectors = dataset_vectors(dataset, layout)
    assert torch.equal(vectors[-1], layout.flatten(model))
    assert len({tuple(vector.tolist()) for vector in [start, *vectors]}) == 5
    rebuilt = load_base_model(tmp_path / "ds").build()
    layout.load_into(rebuilt, vectors[-1])
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(images).logits, model.eval()(images).logits)


def test_trainer_that_trains_the_rest_too_is_refused(tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_labels=2,
        )
    )
    base = BaseModel.transformers(model.config, "ViTForImageClassification").save_weights(model, tmp_path / "base")
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": index % 2} for index in range(4)]
    recorder = ParameterRecorder(ParameterLayout.from_model(model, "head"), tmp_path / "ds", base)
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, max_steps=2
    )
    with pytest.raises(ValueError, match=r"step 1: tensor 'vit\.\S+' is not in the layout, but differs .*freeze_rest"):
        Trainer(model, arguments, train_dataset=data, callbacks=[ParameterRecorderCallback(recorder)]).train()


def test_trainer_callback_refuses_an_impossible_interval(tmp_path):
    with pytest.raises(ValueError, match="every >= 1"):
        ParameterRecorderCallback(ParameterRecorder(LAYOUT, tmp_path / "ds"), every=0)
