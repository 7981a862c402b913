import json
import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import IterableDataset, List, Value, load_dataset
from torch import nn

from pdiff_hf.base_model import WEIGHTS, BaseModel
from pdiff_hf.data import shards
from pdiff_hf.data.dataset import load_base_model, load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors, rewrite, snapshot


def save(folder, rows=6, seed=0, **options):
    save_parameter_dataset(make_vectors(rows, seed), LAYOUT, folder, **options)
    return folder


def test_folder_holds_what_the_design_says(tmp_path):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(mlp3(**NETWORK), tmp_path / "x")
    save(tmp_path / "ds", base_model=base)
    names = {str(path.relative_to(tmp_path / "ds")) for path in (tmp_path / "ds").rglob("*") if path.is_file()}
    assert names == {"data/train-00000.parquet", "layout.json", "stats.json", WEIGHTS, "README.md"}
    layout = json.loads((tmp_path / "ds" / "layout.json").read_text())
    assert set(layout) == {"schema", "num_parameters", "fingerprint", "tensors", "base_model"}
    assert load_base_model(tmp_path / "ds") == base


def test_base_model_of_a_moved_folder_is_built(tmp_path):
    network = mlp3(**NETWORK)
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(network, tmp_path / "x")
    save(tmp_path / "ds", base_model=base)
    (tmp_path / "x" / WEIGHTS).unlink()
    (tmp_path / "ds").rename(tmp_path / "moved")
    assert torch.equal(load_base_model(tmp_path / "moved").build()[1].weight, network[1].weight)


def test_dataset_without_base_model(tmp_path):
    assert load_base_model(save(tmp_path / "ds")) is None


def test_vectors_round_trip_to_the_bit(tmp_path):
    dataset, layout = load_parameter_dataset(save(tmp_path / "ds"))
    assert layout == LAYOUT
    assert torch.equal(dataset_vectors(dataset, layout), make_vectors())


def test_rows_are_torch_tensors(tmp_path):
    dataset, _ = load_parameter_dataset(save(tmp_path / "ds", columns={"val_accuracy": [0.5] * 6}))
    row = dataset[2]
    assert torch.equal(row["parameters"], make_vectors()[2])
    assert row["val_accuracy"] == 0.5
    assert dataset[:4]["parameters"].shape == (4, D)


def test_features_are_typed(tmp_path):
    dataset, _ = load_parameter_dataset(save(tmp_path / "ds", columns={"val_accuracy": [0.5] * 6}))
    expected = {
        "parameters": List(Value("float32"), length=D),
        "run": Value("string"),
        "seed": Value("int64"),
        "step": Value("int64"),
        "epoch": Value("float32"),
        "val_accuracy": Value("float32"),
    }
    assert dict(dataset.features) == expected
    assert list(dataset.features) == list(expected)


def test_plain_datasets_reads_the_folder_with_the_same_features(tmp_path):
    save(tmp_path / "ds", columns={"val_accuracy": [0.5] * 6})
    plain = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    dataset, _ = load_parameter_dataset(tmp_path / "ds")
    assert plain.features == dataset.features
    assert torch.equal(plain.with_format("torch")[:]["parameters"], make_vectors())


def test_parquet_is_byte_stream_split_zstd_without_dictionary(tmp_path):
    save(tmp_path / "ds")
    column = pq.read_metadata(tmp_path / "ds" / "data" / "train-00000.parquet").row_group(0).column(0)
    assert column.path_in_schema == "parameters.list.element"
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page


@pytest.mark.parametrize("folder", ["ds", "run [1] *é"])
def test_streaming_gives_the_same_rows(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    save(tmp_path / folder, columns={"test_accuracy": [0.1, None, 0.3, 0.4, 0.5, 0.6]})
    stream, _ = load_parameter_dataset(str(tmp_path / folder), streaming=True)
    assert isinstance(stream, IterableDataset)
    rows = list(stream)
    assert torch.equal(torch.stack([row["parameters"] for row in rows]), make_vectors())
    assert [row["step"].item() for row in rows] == list(range(6))
    assert stream.features == load_parameter_dataset(tmp_path / folder)[0].features


def test_large_datasets_are_split_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("pdiff_hf.data.shards.SHARD_BYTES", 4 * 4 * D)
    save(tmp_path / "ds", rows=7)
    names = [path.name for path in shards.find_shards(tmp_path / "ds")]
    assert names == ["train-00000.parquet", "train-00001.parquet"]
    assert torch.equal(dataset_vectors(*load_parameter_dataset(tmp_path / "ds")), make_vectors(7))


def twice(row):
    return {"twice": row["parameters"] * 2}


def test_rewritten_folder_never_gives_old_rows(tmp_path):
    first, layout = load_parameter_dataset(save(tmp_path / "ds", seed=0))
    doubled = first.map(twice)
    stat = os.stat(tmp_path / "ds" / "data" / "train-00000.parquet")
    for file in snapshot(tmp_path / "ds"):
        file.unlink()
    save(tmp_path / "ds", seed=1)
    os.utime(tmp_path / "ds" / "data" / "train-00000.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, _ = load_parameter_dataset(tmp_path / "ds")
    assert torch.equal(dataset_vectors(second, layout), make_vectors(seed=1))
    assert torch.equal(dataset_vectors(first, layout), make_vectors(seed=0))
    again = second.map(twice)
    assert torch.equal(again[:]["twice"], 2 * make_vectors(seed=1))
    assert torch.equal(doubled[:]["twice"], 2 * make_vectors(seed=0))
    streamed = [row["parameters"] for row in load_parameter_dataset(tmp_path / "ds", streaming=True)[0]]
    assert torch.equal(torch.stack(streamed), make_vectors(seed=1))


def test_loading_copies_no_rows_into_the_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    save(tmp_path / "ds")
    load_parameter_dataset(tmp_path / "ds")
    list(load_parameter_dataset(tmp_path / "ds", streaming=True)[0])
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0


def test_dataset_vectors_follow_a_selection_of_rows(tmp_path):
    dataset, layout = load_parameter_dataset(save(tmp_path / "ds"))
    assert torch.equal(dataset_vectors(dataset.select([4, 0, 2]), layout), make_vectors()[[4, 0, 2]])
    assert torch.equal(dataset_vectors(dataset.select(range(2, 5)), layout), make_vectors()[2:5])


def test_dataset_vectors_of_another_layout_are_refused(tmp_path):
    dataset, _ = load_parameter_dataset(save(tmp_path / "ds"))
    with pytest.raises(ValueError, match=f"expected vectors of 9 values, found {D}"):
        dataset_vectors(dataset, ParameterLayout.from_model(nn.Linear(2, 3)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_vectors_are_refused_by_row_and_tensor(tmp_path, value):
    vectors = make_vectors()
    vectors[3, LAYOUT.tensors[2].offset] = value
    with pytest.raises(ValueError, match=rf"row 3: tensor '{LAYOUT.tensors[2].name}' has a NaN or infinite value"):
        save_parameter_dataset(vectors, LAYOUT, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()


def test_non_finite_parquet_of_others_is_refused_by_row_and_tensor(tmp_path):
    save(tmp_path / "ds")
    file = tmp_path / "ds" / "data" / "train-00000.parquet"
    table = pq.read_table(file)
    flat = make_vectors().flatten().numpy().copy()
    flat[5 * D - 1] = math.nan
    array = pa.FixedSizeListArray.from_arrays(pa.array(flat), D)
    rewrite(table.set_column(0, "parameters", array), file)
    dataset, layout = load_parameter_dataset(tmp_path / "ds")
    with pytest.raises(ValueError, match=rf"row 4: tensor '{LAYOUT.names[-1]}'"):
        dataset_vectors(dataset, layout)


def test_existing_dataset_is_not_overwritten(tmp_path):
    before = snapshot(save(tmp_path / "ds"))
    with pytest.raises(ValueError, match="already holds a parameter dataset"):
        save(tmp_path / "ds", seed=1)
    assert snapshot(tmp_path / "ds") == before


def test_user_written_readme_is_kept(tmp_path):
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "README.md").write_text("mine")
    save(tmp_path / "ds")
    assert (tmp_path / "ds" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("vectors", "columns", "message"),
    [
        (torch.zeros(2, D + 1), {}, "expected vectors of shape"),
        (torch.zeros(D), {}, "expected vectors of shape"),
        (torch.zeros(2, D), {"val_accuracy": [1.0]}, "'val_accuracy': expected 2 values, found 1"),
        (torch.zeros(2, D), {"val_accuracy": [1.0, math.nan]}, "row 1: metric 'val_accuracy' is nan"),
        (torch.zeros(2, D), {"run": ["a"]}, "'run': expected 2 values, found 1"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, vectors, columns, message):
    with pytest.raises(ValueError, match=message):
        save_parameter_dataset(vectors, LAYOUT, tmp_path / "ds", columns=columns)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_truncated_parquet_is_one_error_that_names_the_file(tmp_path, keep, streaming):
    save(tmp_path / "ds")
    file = tmp_path / "ds" / "data" / "train-00000.parquet"
    data = file.read_bytes()
    file.write_bytes(data[: keep if keep in (0, 4) else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"train-00000\.parquet is not a complete Parquet file"):
        load_parameter_dataset(tmp_path / "ds", streaming=streaming)


def test_parquet_with_damaged_pages_names_the_file(tmp_path):
    save(tmp_path / "ds")
    file = tmp_path / "ds" / "data" / "train-00000.parquet"
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000\.parquet is damaged"):
        load_parameter_dataset(tmp_path / "ds")


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_another_layout_names_the_file(tmp_path, streaming):
    save(tmp_path / "ds")
    other = ParameterLayout.from_model(nn.Linear(2, 3))
    save_parameter_dataset(torch.zeros(1, 9), other, tmp_path / "other")
    os.replace(tmp_path / "other" / "data" / "train-00000.parquet", tmp_path / "ds" / "data" / "train-00001.parquet")
    with pytest.raises(ValueError, match=rf"train-00001\.parquet: expected 'parameters' of {D} float32 values"):
        load_parameter_dataset(tmp_path / "ds", streaming=streaming)


def test_parquet_without_a_key_column_names_it(tmp_path):
    save(tmp_path / "ds")
    file = tmp_path / "ds" / "data" / "train-00000.parquet"
    rewrite(pq.read_table(file).drop_columns(["step"]), file)
    with pytest.raises(ValueError, match=r"train-00000\.parquet: expected a column 'step'"):
        load_parameter_dataset(tmp_path / "ds")


def test_rows_without_parameters_are_refused(tmp_path):
    save(tmp_path / "ds")
    file = tmp_path / "ds" / "data" / "train-00000.parquet"
    table = pq.read_table(file)
    nulls = pa.nulls(6, table.schema.field("parameters").type)
    rewrite(table.set_column(0, "parameters", nulls), file)
    with pytest.raises(ValueError, match="found rows without"):
        load_parameter_dataset(tmp_path / "ds")


def test_folder_that_is_no_dataset_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing, found no such folder"):
        load_parameter_dataset(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"layout\.json, found none"):
        load_parameter_dataset(tmp_path)


def test_folder_without_shards_is_named(tmp_path):
    save(tmp_path / "ds")
    (tmp_path / "ds" / "data" / "train-00000.parquet").unlink()
    with pytest.raises(ValueError, match="expected Parquet shards"):
        load_parameter_dataset(tmp_path / "ds")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["tensors"][0].update(name="other"),
        lambda d: d.pop("base_model"),
        lambda d: d.update(base_model={"library": "timm"}),
        lambda d: d.update(base_model=3),
    ],
)
def test_tampered_layout_file_is_named(tmp_path, change):
    file = save(tmp_path / "ds") / "layout.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"layout\.json: "):
        load_parameter_dataset(tmp_path / "ds")


def test_base_weights_out_of_the_folder_are_refused(tmp_path):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(mlp3(**NETWORK), tmp_path / "x")
    file = save(tmp_path / "ds", base_model=base) / "layout.json"
    values = json.loads(file.read_text())
    values["base_model"]["weights"] = "../x/base/model.safetensors"
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"layout\.json: .*inside its own folder"):
        load_base_model(tmp_path / "ds")


def test_stats_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * 4 * D)
    accuracy = [0.1, 0.2, None, 0.4, 0.5, 0.6]
    columns = {"run": ["a"] * 2 + ["b"] * 4, "val_accuracy": accuracy}
    save(tmp_path / "ds", columns=columns, metadata={"task": {"kind": "x"}})
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    named = {"schema", "num_rows", "runs", "unordered_runs", "shards", "columns", "tensors", "metadata"}
    assert set(stats) == named and stats["unordered_runs"] == ["a", "b"]
    assert (stats["schema"], stats["num_rows"], stats["runs"]) == (1, 6, ["a", "b"])
    assert stats["metadata"] == {"task": {"kind": "x"}}
    known = np.array([value for value in accuracy if value is not None], dtype=np.float32)
    expected = {"count": 5, "mean": known.mean(), "std": known.std(), "min": known.min(), "max": known.max()}
    assert stats["columns"] == {"val_accuracy": {k: pytest.approx(float(v), rel=1e-6) for k, v in expected.items()}}
    assert [tensor["name"] for tensor in stats["tensors"]] == list(LAYOUT.names)
    for name, values in LAYOUT.unflatten(make_vectors()).items():
        tensor = next(tensor for tensor in stats["tensors"] if tensor["name"] == name)
        assert tensor["mean"] == pytest.approx(values.double().mean().item(), abs=1e-9)
        assert tensor["std"] == pytest.approx(values.double().std(correction=0).item(), rel=1e-9)
