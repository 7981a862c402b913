import math
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, IterableDataset, List, Value, load_dataset

from pdiff_hf.data import shards
from pdiff_hf.data.dataset import ParameterDataset, load_parameter_dataset
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import LAYOUT, D, make_vectors, rewrite

LENGTH = 13
CHUNKS = [LENGTH] * (D // LENGTH) + [D % LENGTH] * (D % LENGTH > 0)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr("pdiff_hf.data.chunks.CHUNK_VALUES", LENGTH)


@pytest.fixture
def folder(tmp_path):
    columns = {"run": ["a"] * 2 + ["b"] * 4, "val_accuracy": [0.1, None, 0.3, 0.4, 0.5, 0.6]}
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns)
    return tmp_path / "ds"


def first_shard(folder):
    return folder / "data" / "train-00000.parquet"


def test_rows_are_stored_as_chunks_in_order(folder):
    assert len(CHUNKS) > 2 and CHUNKS[-1] < LENGTH
    table = pq.read_table(first_shard(folder))
    assert table.column_names == ["run", "seed", "step", "epoch", "val_accuracy", "chunk", "values"]
    assert table.column("chunk").to_pylist() == [*range(len(CHUNKS))] * 6
    assert [len(values) for values in table.column("values").to_pylist()] == CHUNKS * 6
    assert table.column("step").to_pylist() == [step for step in range(6) for _ in CHUNKS]
    flat = table.column("values").combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat, make_vectors().numpy().ravel())


def test_chunks_are_byte_stream_split_zstd_without_dictionary(folder):
    group = pq.read_metadata(first_shard(folder)).row_group(0)
    column = group.column(group.num_columns - 1)
    assert column.path_in_schema == "values.list.element"
    assert column.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page


def test_vectors_of_the_chunk_length_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.data.chunks.CHUNK_VALUES", D)
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    assert pq.read_schema(first_shard(tmp_path / "ds")).names[0] == "parameters"


@pytest.mark.parametrize("streaming", [False, True])
def test_chunks_are_read_back_as_rows_to_the_bit(folder, streaming):
    dataset, layout = load_parameter_dataset(folder, streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert layout == LAYOUT
    assert dict(dataset.features) == {
        "parameters": List(Value("float32"), length=D),
        **{name: Value(dtype) for name, dtype in shards.KEYS.items()},
        "val_accuracy": Value("float32"),
    }
    rows = list(dataset)
    assert torch.equal(torch.stack([row["parameters"] for row in rows]), make_vectors())
    assert [row["step"].item() for row in rows] == list(range(6))
    assert [row["run"] for row in rows] == ["a"] * 2 + ["b"] * 4
    assert [row["val_accuracy"] for row in dataset.with_format(None)] == [
        value if value is None else pytest.approx(value) for value in (0.1, None, 0.3, 0.4, 0.5, 0.6)
    ]


def test_vectors_of_chunks(folder):
    dataset, layout = load_parameter_dataset(folder)
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors())
    assert torch.equal(dataset_vectors(dataset.select([4, 0]), layout), make_vectors()[[4, 0]])


def test_plain_datasets_reads_chunk_rows(folder, tmp_path):
    plain = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain.features["values"] == List(Value("float32")) and plain.features["chunk"] == Value("int32")
    assert len(plain) == 6 * len(CHUNKS)


def test_stats_count_checkpoints_and_not_chunks(folder):
    stats = shards.recorded_runs(folder)
    assert stats == {"a": 2, "b": 4}
    text = (folder / "stats.json").read_text()
    assert '"num_rows": 6' in text


def test_shards_are_bounded_and_hold_whole_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * LENGTH)
    save_parameter_dataset(make_vectors(7), LAYOUT, tmp_path / "ds")
    files = shards.find_shards(tmp_path / "ds")
    assert [pq.read_metadata(file).num_rows for file in files] == [2 * len(CHUNKS)] * 3 + [len(CHUNKS)]
    assert pq.read_metadata(files[0]).num_row_groups == 2 * len(CHUNKS)
    rows = [row["parameters"] for row in load_parameter_dataset(tmp_path / "ds", streaming=True)[0]]
    assert torch.equal(torch.stack(rows), make_vectors(7))
    assert torch.equal(dataset_vectors(*load_parameter_dataset(tmp_path / "ds")), make_vectors(7))


def test_workers_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    save_parameter_dataset(make_vectors(7), LAYOUT, tmp_path / "ds")
    stream, _ = load_parameter_dataset(tmp_path / "ds", streaming=True)
    parts = [stream.shard(2, index) for index in range(2)]
    steps = [[row["step"].item() for row in part] for part in parts]
    assert all(steps) and sorted(steps[0] + steps[1]) == list(range(7))


def test_recorded_and_appended_rows_are_chunks_too(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="a") as recorder:
        for step, vector in enumerate(make_vectors(3)):
            recorder.record(vector, step=step, loss=0.5)
    before = first_shard(tmp_path / "ds").read_bytes()
    ParameterDataset(tmp_path / "ds").append(make_vectors(4, 1), {"run": ["b"] * 4, "train_loss": [0.5] * 4})
    assert first_shard(tmp_path / "ds").read_bytes() == before
    assert all("values" in pq.read_schema(file).names for file in shards.find_shards(tmp_path / "ds"))
    vectors = dataset_vectors(*load_parameter_dataset(tmp_path / "ds"))
    assert torch.equal(vectors, torch.cat([make_vectors(3), make_vectors(4, 1)]))
    with pytest.raises(ValueError, match="already holds run 'b'"):
        ParameterRecorder(LAYOUT, tmp_path / "ds", run="b").check_new()


def test_metrics_of_chunked_rows_are_those_of_the_checkpoints(tmp_path):
    values = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    dataset = ParameterDataset.write(make_vectors(), LAYOUT, tmp_path / "ds", columns={"test_accuracy": values})
    assert "values" in pq.read_schema(first_shard(tmp_path / "ds")).names
    torch.testing.assert_close(dataset.metrics["test_accuracy"], torch.tensor(values))


def drop(row):
    return lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def replace(name, row, value):
    def change(table):
        values = table.column(name).to_pylist()
        values[row] = value
        index = table.column_names.index(name)
        return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))

    return change


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        drop(0),
        drop(len(CHUNKS) + 1),
        drop(6 * len(CHUNKS) - 1),
        lambda table: table.slice(0, len(CHUNKS) - 1),
        lambda table: table.take([1, 0, *range(2, len(table))]),
        replace("chunk", 1, 0),
        replace("chunk", 1, None),
        replace("values", 0, [0.0] * (LENGTH - 1)),
        replace("values", 0, [0.0] * (LENGTH + 1)),
        replace("values", 0, None),
        replace("step", 1, 5),
        replace("run", 0, "b"),
    ],
)
def test_chunks_that_do_not_make_whole_checkpoints_are_refused(folder, change, streaming):
    table = pq.read_table(first_shard(folder))
    rewrite(change(table), first_shard(folder))
    with pytest.raises(ValueError, match=rf"expected chunks 0 to {len(CHUNKS) - 1} of {D} values in all") as caught:
        list(load_parameter_dataset(folder, streaming=streaming)[0])
    assert streaming or "train-00000.parquet: " in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["chunk"]), "expected a column 'chunk'"),
        (lambda table: table.drop_columns(["values"]), "expected a column 'values'"),
        (lambda table: table.drop_columns(["step"]), "expected a column 'step'"),
        (
            lambda table: table.set_column(6, "values", pa.array([["x"]] * len(table))),
            "expected 'values' of float32 values",
        ),
    ],
)
def test_shards_without_chunk_columns_are_named(folder, change, message, streaming):
    rewrite(change(pq.read_table(first_shard(folder))), first_shard(folder))
    with pytest.raises(ValueError, match=rf"train-00000\.parquet: {message}"):
        load_parameter_dataset(folder, streaming=streaming)


def test_non_finite_chunk_of_others_is_refused_by_row_and_tensor(folder):
    table = replace("values", len(CHUNKS), [math.nan] * LENGTH)(pq.read_table(first_shard(folder)))
    rewrite(table, first_shard(folder))
    with pytest.raises(ValueError, match=rf"row 1: tensor {re.escape(repr(LAYOUT.names[0]))}"):
        dataset_vectors(*load_parameter_dataset(folder))


MEMORY = """
import resource, sys
import numpy as np, torch
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.dataset import load_parameter_dataset
from pdiff_hf.data import shards
from pdiff_hf.data import chunks
from pdiff_hf.layout import ParameterLayout, TensorSpec

shards.SHARD_BYTES, shards.ROW_GROUP_BYTES, chunks.CHUNK_VALUES = 2**24, 2**22, 10**6
layout = ParameterLayout((TensorSpec("weight", (2_500_000,), 0),))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
vector = torch.zeros(layout.num_parameters)
start = peak()
with ParameterRecorder(layout, sys.argv[1]) as recorder:
    for step in range(40):
        recorder.record(vector.fill_(step).uniform_(), step=step)
        vector[0] = step
written = peak()
assert sum(len(row["parameters"]) for row in load_parameter_dataset(sys.argv[1], streaming=True)[0]) == 10**8
print(written - start, peak() - start)
"""


@pytest.mark.slow
def test_memory_stays_bounded_when_writing_and_streaming(tmp_path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "ds")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode in (0, -signal.SIGABRT), result.stderr
    written, streamed = map(int, result.stdout.split())
    # Of 400 MB in all; a shard is 16 MB, a checkpoint 10 MB.
    assert written < 200 and streamed < 250
