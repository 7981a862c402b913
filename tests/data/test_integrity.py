import json
import os
import shutil
import socket

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pdiff_hf.data import shards
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.integrity import CHANGING
from pdiff_hf.data.push import dataset_files
from pdiff_hf.data.record import ParameterRecorder
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout, TensorSpec
from small_datasets import LAYOUT, D, make_vectors, rewrite, unlist

METRIC = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
READERS = {
    "vectors": lambda folder: ParameterDataset(folder).vectors(),
    "metrics": lambda folder: ParameterDataset(folder).metrics["val_accuracy"],
    "stream": lambda folder: torch.stack([r["parameters"] for r in ParameterDataset(folder, streaming=True).rows]),
    "stored": lambda folder: shards.read_shard(shards.find_shards(folder)[0], LAYOUT).column("step").to_numpy(),
}


def save(folder, rows=6, **options):
    save_parameter_dataset(make_vectors(rows), LAYOUT, folder, columns={"val_accuracy": METRIC[:rows]}, **options)
    return folder


@pytest.fixture
def three(tmp_path, monkeypatch):
    """A dataset of three shards of two rows."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    return save(tmp_path / "ds")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("reader", READERS)
def test_no_flipped_byte_changes_what_is_read(tmp_path, reader, is_chunked, monkeypatch):
    if is_chunked:
        monkeypatch.setattr("pdiff_hf.data.chunks.CHUNK_VALUES", 13)
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    expected, data, found = READERS[reader](tmp_path / "ds"), file.read_bytes(), 0
    for position in range(5, len(data), 61):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            assert np.array_equal(READERS[reader](tmp_path / "ds"), expected)
        except ValueError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            found += 1
    # Whole reads find all; metrics are read without the pages of the parameters.
    assert found == len(range(5, len(data), 61)) or (reader == "metrics" and found > 10)


def test_flipped_byte_of_a_page_is_found_without_a_list(tmp_path):
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    unlist(tmp_path / "ds")
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000\.parquet is damaged: .*CRC"):
        ParameterDataset(tmp_path / "ds").vectors()


def test_flipped_byte_of_a_footer_is_found_when_only_metrics_are_read(tmp_path):
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    data = bytearray(file.read_bytes())
    data[-20] ^= 16
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000\.parquet is damaged: expected footer_sha256"):
        ParameterDataset(tmp_path / "ds").metrics  # noqa: B018


def test_shards_are_hashed_once(three, monkeypatch):
    hashed = []
    monkeypatch.setattr("pdiff_hf.data.integrity.sha256_file", lambda file: hashed.append(file) or "x")
    for file in shards.find_shards(three):
        os.utime(file)
    for _ in range(2):
        with pytest.raises(ValueError, match="is damaged: expected sha256"):
            ParameterDataset(three).vectors()
    assert len(hashed) == 1


def test_stats_list_the_shards(three):
    listed = json.loads((three / "stats.json").read_text())["shards"]
    names = [file.name for file in shards.find_shards(three)]
    assert [(entry["file"], entry["num_rows"]) for entry in listed] == [(name, 2) for name in names]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: shutil.copy(data / "train-00000.parquet", data / "train-00017.parquet"), "00017.* is a copy of"),
        (
            lambda data: (data / "train-00000.parquet").rename(data / "train-00017.parquet"),
            "00017.* is train-00000.parquet under another name; rename it",
        ),
        (lambda data: (data / "train-00001.parquet").unlink(), r"found no train-00001\.parquet; 1 of 3 with 2 rows"),
        (lambda data: (data / "train-00002.parquet").unlink(), r"found no train-00002\.parquet"),
        (lambda data: os.replace(data / "train-00002.parquet", data / "train-00001.parquet"), "00001.* is damaged"),
        (lambda data: shutil.copy(data / "train-00002.parquet", data / "train-00001.parquet"), "00001.* is damaged"),
    ],
)
def test_foreign_and_missing_shards_are_named(three, change, message, streaming):
    change(three / "data")
    with pytest.raises(ValueError, match=message):
        list(ParameterDataset(three, streaming=streaming).rows)
    with pytest.raises(ValueError, match=message):
        ParameterDataset(three).append(make_vectors(1), {"run": ["b"]})


def test_shard_of_another_dataset_is_named(three, tmp_path):
    save(tmp_path / "other", rows=1)
    shutil.copy(tmp_path / "other" / "data" / "train-00000.parquet", three / "data" / "train-00003.parquet")
    with pytest.raises(ValueError, match=r"found train-00003\.parquet, which does not belong to it"):
        ParameterDataset(three).metrics  # noqa: B018


def test_of_unlisted_shards_copies_and_missing_rows_are_named(three):
    unlist(three)
    assert len(ParameterDataset(three)) == 6
    shutil.copy(three / "data" / "train-00001.parquet", three / "data" / "train-00017.parquet")
    with pytest.raises(ValueError, match=r"00017\.parquet holds the rows of train-00001\.parquet again"):
        ParameterDataset(three).rows  # noqa: B018
    for name in ("train-00017.parquet", "train-00001.parquet"):
        (three / "data" / name).unlink()
    with pytest.raises(ValueError, match=r"expected 6 rows, as stats\.json says, found 4"):
        len(ParameterDataset(three))


class Killed(BaseException):
    """Raised where a process is killed."""


def kill(folder, kept):
    """Keep what the folder is when a process is killed: of an exception, what was begun is taken back."""
    shutil.copytree(folder, kept)
    raise Killed


@pytest.mark.parametrize("name", ["shards.append_shards", "finish_dataset", "compute_stats", "write_json", "settle"])
def test_append_that_was_killed_is_read_and_gone_on_with(three, name, tmp_path, monkeypatch):
    def die(*args, **kwargs):
        if name == "shards.append_shards":
            append(*args, **kwargs)
        kill(three, tmp_path / "killed")

    append = shards.append_shards
    with monkeypatch.context() as patch:
        patch.setattr(f"pdiff_hf.data.writer.{name}", die)
        with pytest.raises(Killed):
            ParameterDataset(three).append(make_vectors(3, 1), {"run": ["b"] * 3, "val_accuracy": [0.5] * 3})
    assert len(ParameterDataset(three)) == 6
    three = tmp_path / "killed"
    assert (three / CHANGING).exists()
    assert len(ParameterDataset(three)) == 9
    expected = torch.cat([make_vectors(), make_vectors(3, 1)])
    assert torch.equal(ParameterDataset(three).vectors(), expected)
    shutil.copy(three / "data" / "train-00000.parquet", three / "data" / "train-00017.parquet")
    with pytest.raises(ValueError, match="is a copy of"):
        ParameterDataset(three).vectors()
    (three / "data" / "train-00017.parquet").unlink()
    ParameterDataset(three).append(make_vectors(1, 2), {"run": ["c"], "val_accuracy": [0.5]})
    assert not (three / CHANGING).exists()
    assert len(json.loads((three / "stats.json").read_text())["shards"]) == len(shards.find_shards(three)) == 6
    assert len(ParameterDataset(three)) == 10


def test_old_shards_that_get_a_metric_may_be_left_half_done(three, tmp_path, monkeypatch):
    count, write = [], shards.write_shard

    def die(rows, file):
        if file.parent.name == "data" and count.append(file) is None and len(count) == 2:
            kill(three, tmp_path / "killed")
        write(rows, file)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", die)
        with pytest.raises(Killed):
            ParameterDataset(three).append(make_vectors(1, 1), {"run": ["b"], "test_accuracy": [0.5]})
    assert len(ParameterDataset(three).vectors()) == 6
    three = tmp_path / "killed"
    assert len(ParameterDataset(three).vectors()) == 7
    dataset_files(three)
    assert not (three / CHANGING).exists()
    assert "test_accuracy" in pq.read_schema(shards.find_shards(three)[1]).names
    assert len(ParameterDataset(three).vectors()) == 7


def test_recording_that_was_killed_while_it_was_closed_is_finished(tmp_path, monkeypatch):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    for step, vector in enumerate(make_vectors(3)):
        recorder.record(vector, step=step)
    with monkeypatch.context() as patch:
        patch.setattr("pdiff_hf.data.writer.finish_dataset", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            recorder.close()
    assert torch.equal(ParameterDataset(tmp_path / "ds").vectors(), make_vectors(3))
    with ParameterRecorder(LAYOUT, tmp_path / "ds", run="run-1") as recorder:
        recorder.record(make_vectors(1)[0], step=0)
    assert len(ParameterDataset(tmp_path / "ds")) == 4 and not (tmp_path / "ds" / CHANGING).exists()


@pytest.mark.parametrize("value", [1e17, -1e37, np.inf, np.nan])
def test_values_that_no_network_has_are_refused_by_row_and_tensor(tmp_path, value):
    vectors = make_vectors()
    vectors[4, LAYOUT.tensors[1].offset] = value
    with pytest.raises(ValueError, match=rf"row 4: tensor '{LAYOUT.names[1]}' has (the value|a NaN or infinite)"):
        save_parameter_dataset(vectors, LAYOUT, tmp_path / "ds")
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    table = pq.read_table(file)
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), D)
    rewrite(table.set_column(0, "parameters", array), file)
    with pytest.raises(ValueError, match=f"row 4: tensor '{LAYOUT.names[1]}'"):
        ParameterDataset(tmp_path / "ds").vectors()


def test_values_above_a_tensors_own_type_are_refused(tmp_path):
    layout = ParameterLayout((TensorSpec("wide", (2,), 0), TensorSpec("half", (2,), 2, dtype="float16")))
    save_parameter_dataset(torch.tensor([[1e9, 0, 6e4, 0]]), layout, tmp_path / "fits")
    with pytest.raises(ValueError, match=r"tensor 'half' has the value 7e\+04, above 6.55e\+04"):
        save_parameter_dataset(torch.tensor([[1e9, 0, 7e4, 0]]), layout, tmp_path / "ds")


def odd(name, values):
    def change(table):
        new = values(table.column(name)) if callable(values) else values
        return table.set_column(table.column_names.index(name), name, new)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.append_column("step", t.column("step")), "expected every column once, found 'step' twice"),
        (lambda t: t.append_column("parameters", t.column(0)), "expected every column once, found 'parameters' twice"),
        (odd("val_accuracy", pa.array(list("abcdef"))), "expected numbers in the column 'val_accuracy'"),
        (odd("val_accuracy", pa.array([[1.0]] * 6)), "expected numbers in the column 'val_accuracy'"),
        (odd("run", pa.array(range(6))), "expected names in the column 'run'"),
        (odd("run", pa.array(["a", None] * 3)), "expected 'run' in every row"),
        (odd("step", pa.array([0, None] * 3)), "expected 'step' in every row"),
        (odd("step", pa.array([0.5] * 6)), "expected whole numbers in the column 'step'"),
        (lambda t: t.slice(0, 0), "expected checkpoints, found shards without rows"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_odd_columns_are_named(tmp_path, change, message, streaming):
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    rewrite(change(pq.read_table(file)), file)
    with pytest.raises(ValueError, match=message):
        list(ParameterDataset(tmp_path / "ds", streaming=streaming).rows)


@pytest.mark.parametrize(
    "change",
    [
        odd("run", lambda column: column.dictionary_encode()),
        odd("run", lambda column: column.cast(pa.large_string())),
        odd("step", lambda column: column.cast(pa.int32())),
        odd("val_accuracy", lambda column: column.cast(pa.float64())),
        odd("val_accuracy", pa.nulls(6)),
        odd("epoch", pa.nulls(6)),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_others_are_served(tmp_path, change, streaming):
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    rewrite(change(pq.read_table(file)), file)
    rows = list(ParameterDataset(tmp_path / "ds", streaming=streaming).rows)
    assert [row["run"] for row in rows] == ["run-0"] * 6 and [int(row["step"]) for row in rows] == list(range(6))
    assert len(ParameterDataset(tmp_path / "ds").metrics["val_accuracy"]) == 6


CODECS = [{"compression": name} for name in ("none", "gzip", "brotli", "lz4", "snappy")]


@pytest.mark.parametrize("options", [*CODECS, {"version": "1.0"}, {"data_page_version": "2.0"}])
def test_other_codecs_and_versions_are_served(tmp_path, options):
    file = shards.find_shards(save(tmp_path / "ds"))[0]
    table = pq.read_table(file)
    (tmp_path / "ds" / "stats.json").unlink()
    pq.write_table(table, file, **options)
    assert torch.equal(ParameterDataset(tmp_path / "ds").vectors(), make_vectors())


def no_file(kind, path):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device", "socket"])
@pytest.mark.parametrize("name", ["data/train-00001.parquet", "layout.json", "stats.json"])
def test_what_is_no_file_is_said_and_not_waited_for(three, kind, name, monkeypatch):
    monkeypatch.chdir(three)
    no_file(kind, three / name)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"expected a (JSON )?file at .*, found (a|none)") as caught:
            list(ParameterDataset(three, streaming=streaming).rows)
        assert name in str(caught.value)


def test_a_shard_that_may_not_be_read_is_not_called_damaged(three, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.__init__", denied)
    with pytest.raises(ValueError, match=r"train-00000\.parquet: cannot be read: Permission denied"):
        ParameterDataset(three).vectors()


def test_nothing_is_saved_without_rows(tmp_path):
    with pytest.raises(ValueError, match="expected at least one checkpoint"):
        save_parameter_dataset(torch.zeros(0, D), LAYOUT, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()
