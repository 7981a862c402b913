import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from torch import nn

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data import shards
from pdiff_hf.data.dataset import ParameterDataset, load_parameter_dataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import append_rows, save_parameter_dataset
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors, rewrite, snapshot


def columns(run, rows, **metrics):
    return {"run": [run] * rows, **{name: [value] * rows for name, value in metrics.items()}}


def save(folder, run="a", rows=6, seed=0, **metrics):
    save_parameter_dataset(make_vectors(rows, seed), LAYOUT, folder, columns=columns(run, rows, **metrics))
    return folder


def parquet(folder):
    return {path: path.read_bytes() for path in shards.find_shards(folder)}


def test_appended_rows_come_behind_in_new_shards(tmp_path):
    before = parquet(save(tmp_path / "ds", val_accuracy=0.5))
    new = columns("b", 4, val_accuracy=0.25)
    ParameterDataset(tmp_path / "ds").append(make_vectors(4, 1), new, {"x": 1})
    after = parquet(tmp_path / "ds")
    assert {path: after[path] for path in before} == before
    assert [path.name for path in after] == ["train-00000.parquet", "train-00001.parquet"]
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(dataset, layout), torch.cat([make_vectors(), make_vectors(4, 1)]))
    assert dataset[:]["run"] == ["a"] * 6 + ["b"] * 4
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    assert (stats["num_rows"], stats["runs"], stats["metadata"]) == (10, ["a", "b"], {"x": 1})
    assert stats["columns"]["val_accuracy"]["mean"] == pytest.approx(0.4)
    assert {path.name for path in (tmp_path / "ds").iterdir()} == {"data", "layout.json", "stats.json", "README.md"}


def test_rows_that_lack_a_metric_leave_old_shards_as_they_are(tmp_path):
    before = parquet(save(tmp_path / "ds", val_accuracy=0.5, test_accuracy=0.5))
    ParameterDataset(tmp_path / "ds").append(make_vectors(1, 1), columns("b", 1))
    after = parquet(tmp_path / "ds")
    assert {path: after[path] for path in before} == before
    plain = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["test_accuracy"][:] == [0.5] * 6 + [None]


def test_populations_are_names_and_no_metric(tmp_path):
    save_parameter_dataset(make_vectors(2), LAYOUT, tmp_path / "ds", columns=columns("a", 2))
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.populations is None
    dataset.append(make_vectors(2, 1), columns("b", 2) | {"population": ["x", "y"], "score": [0.5, 1.0]})
    assert dataset.populations == [None, None, "x", "y"]
    assert set(dataset.metrics) == set(dataset.stats["columns"]) == {"score"}
    # Old shards get the column, so that all have the same.
    loaded = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["population"][:] == dataset.rows.with_format(None)["population"][:] == [None, None, "x", "y"]
    assert "of which of several populations" in (tmp_path / "ds" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"checkpoint of row 0: 'population': expected a text, found 3"):
        dataset.append(make_vectors(1, 2), columns("c", 1, population=3))
    # Rows with and without one are written again.
    assert dataset.copy_first(3, tmp_path / "first").populations == [None, None, "x"]


def test_other_layout_run_or_base_model_is_refused_and_nothing_changes(tmp_path):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    bases = [base.save_weights(mlp3(**NETWORK), tmp_path / name) for name in "xy"]
    head = ParameterLayout.from_model(mlp3(**NETWORK), "head")
    size = head.num_parameters
    save_parameter_dataset(torch.ones(6, size), head, tmp_path / "ds", bases[0], columns("a", 6))
    before = snapshot(tmp_path / "ds")
    other = ParameterLayout.from_model(nn.Linear(size - 1, 1))
    assert other.num_parameters == size
    for layout, base_model, run, message in (
        (other, None, "b", "belong to different networks: tensor"),
        (head, bases[1], "b", r"different networks: tensor '\S+' of the base model differs"),
        (head, bases[0], "a", "already holds run 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            append_rows(torch.ones(2, size), layout, tmp_path / "ds", base_model, columns(run, 2))
        assert snapshot(tmp_path / "ds") == before


def test_shard_of_another_layout_with_as_many_values_is_refused(tmp_path):
    save(tmp_path / "ds")
    other = ParameterLayout.from_model(nn.Linear(D - 1, 1))
    save_parameter_dataset(make_vectors(2), other, tmp_path / "other", columns=columns("b", 2))
    os.replace(tmp_path / "other" / "data" / "train-00000.parquet", tmp_path / "ds" / "data" / "train-00001.parquet")
    message = rf"train-00001\.parquet: expected the layout {LAYOUT.fingerprint[:12]}, found {other.fingerprint[:12]}"
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message):
            load_parameter_dataset(tmp_path / "ds", streaming=streaming)
    with pytest.raises(ValueError, match=message):
        append_rows(make_vectors(2), LAYOUT, tmp_path / "ds", columns=columns("c", 2))


def test_shards_that_name_no_layout_are_read(tmp_path):
    (file,) = parquet(save(tmp_path / "ds"))
    rewrite(pq.read_table(file).replace_schema_metadata(None), file)
    assert torch.equal(dataset_vectors(*load_parameter_dataset(tmp_path / "ds")), make_vectors())


def test_nothing_is_appended_to_a_folder_without_a_dataset(tmp_path):
    with pytest.raises(ValueError, match=r"expected a parameter dataset at .*nothing, found no layout\.json"):
        append_rows(make_vectors(2), LAYOUT, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_folder_that_is_being_recorded_is_refused(tmp_path):
    save(tmp_path / "ds")
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="b") as recorder:
        recorder.record(make_vectors()[0], step=0)
        with pytest.raises(ValueError, match="is being written to by"):
            append_rows(make_vectors(2), LAYOUT, tmp_path / "ds", columns=columns("c", 2))


KILLED = """
import os, signal, sys
import torch
from pdiff_hf.data import shards
from pdiff_hf.data import writer
from pdiff_hf.data.folder import read_layout

shards.SHARD_BYTES = 1
write, count = shards.write_shard, 0
def write_and_die(table, file):
    global count
    write(table, file)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
shards.write_shard = write_and_die
writer.append_rows(torch.zeros(5, 20), read_layout(sys.argv[1])[0], sys.argv[1], columns={"run": ["b"] * 5})
"""


def test_killed_append_leaves_the_old_dataset_and_can_be_repeated(tmp_path):
    layout = ParameterLayout((TensorSpec("weight", (4, 5), 0),))
    save_parameter_dataset(torch.ones(3, 20), layout, tmp_path / "ds", columns=columns("a", 3))
    before = snapshot(tmp_path / "ds")
    code = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "ds")], timeout=300).returncode
    assert code == -signal.SIGKILL
    assert len(list((tmp_path / "ds" / ".append").iterdir())) == 3
    after = snapshot(tmp_path / "ds")
    assert {path: after[path] for path in before} == before
    assert torch.equal(dataset_vectors(*load_parameter_dataset(tmp_path / "ds")), torch.ones(3, 20))
    plain = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(plain) == 3
    ParameterDataset(tmp_path / "ds").append(torch.zeros(5, 20), columns("b", 5))
    assert len(load_parameter_dataset(tmp_path / "ds")[0]) == 8
    assert not (tmp_path / "ds" / ".append").exists()
