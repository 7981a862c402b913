from pathlib import Path

import pytest
import torch

from factories import make_network
from pdiff_hf import ParameterDataset
from pdiff_hf.base_model import BaseModel
from pdiff_hf.data import dataset as dataset_module
from pdiff_hf.data import folder as folder_module
from pdiff_hf.files import read_json
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors

TASK = {"kind": "image_classification", "dataset": "digits"}


@pytest.fixture
def written(tmp_path):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(mlp3(**NETWORK), tmp_path / "x")
    columns = {"run": ["a"] * 6, "step": [*range(6)], "test_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    return ParameterDataset.write(make_vectors(), LAYOUT, tmp_path / "ds", base, columns, {"task": TASK})


def test_everything_that_is_known_of_the_rows(written, tmp_path):
    dataset = ParameterDataset(str(tmp_path / "ds"))
    assert dataset.layout == LAYOUT and dataset.base_model == written.base_model and len(dataset) == 6
    assert dataset.task == TASK and dataset.metadata == {"task": TASK} and dataset.stats["num_rows"] == 6
    assert list(dataset.metrics) == ["test_accuracy"]
    torch.testing.assert_close(dataset.metrics["test_accuracy"], torch.arange(1, 7) / 10)
    assert dataset.rows[:]["step"].tolist() == [*range(6)]
    assert f"num_parameters={D}" in repr(dataset)


def test_a_row_and_the_base_model_are_the_network(written):
    model = written.base_model.build()
    written.layout.load_into(model, written.vectors(rows=[2])[0])
    assert torch.equal(written.layout.flatten(model), make_vectors()[2])


@pytest.mark.parametrize("resident", [0, 2**28])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), None),
        ([5, 0, 5], None),
        (slice(1, 3), slice(2, 7)),
        (None, slice(3, 5)),
        (torch.tensor([4]), None),
    ],
)
def test_some_vectors_are_a_tensor_however_many_there_are(written, monkeypatch, resident, rows, columns):
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", resident)
    expected = make_vectors()[slice(None) if rows is None else rows][:, slice(None) if columns is None else columns]
    found = written.vectors(rows, columns)
    assert isinstance(found, torch.Tensor) and torch.equal(found, expected)


def test_large_vectors_are_copied_to_one_scratch_file_only(written, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAX_RESIDENT_BYTES", 0)
    assert written.vectors() is written.vectors()
    written.append(make_vectors(2, 1), {"run": ["b"] * 2, "test_accuracy": [0.0] * 2})
    assert torch.equal(written.vectors(rows=slice(6, 8)), make_vectors(2, 1)) and len(written) == 8
    assert written.stats["runs"] == ["a", "b"]


def test_streamed_rows_have_no_vectors(written, tmp_path):
    streamed = ParameterDataset(tmp_path / "ds", streaming=True)
    assert torch.equal(torch.stack([row["parameters"] for row in streamed.rows]), make_vectors())
    with pytest.raises(ValueError, match=r"is streamed: read \.rows"):
        streamed.vectors()


def test_first_rows_keep_base_model_metrics_and_metadata(written, tmp_path):
    first = written.copy_first(3, tmp_path / "first")
    assert torch.equal(first.vectors(), make_vectors()[:3]) and first.base_model == written.base_model
    assert first.metadata == {"task": TASK, "first_rows": 3}
    assert torch.equal(first.metrics["test_accuracy"], written.metrics["test_accuracy"][:3])
    for number, folder, message in ((7, "more", "expected 1 to 6 rows"), (2, "first", "exists already")):
        with pytest.raises(ValueError, match=message):
            written.copy_first(number, tmp_path / folder)
    assert not (tmp_path / "more").exists()


def test_a_missing_path_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset_module, "download_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=r"expected a parameter dataset at .*no such folder"):
        ParameterDataset(Path("runs", "dataset"))


def test_trust_is_the_datasets_and_not_stored(tmp_path):
    network = make_network()
    layout = ParameterLayout.from_model(network)
    base = BaseModel.imported("factories:make_network")
    vectors = layout.flatten(network).repeat(2, 1)
    ParameterDataset.write(vectors, layout, tmp_path / "ds", base)
    with pytest.raises(ValueError, match="if you trust its code"):
        ParameterDataset(tmp_path / "ds").base_model.build()
    trusted = ParameterDataset(tmp_path / "ds", trusted_imports=["factories"])
    assert torch.equal(layout.flatten(trusted.base_model.build()).sum(), layout.flatten(make_network()).sum())
    assert "trusted_imports" not in read_json(tmp_path / "ds" / "layout.json")["base_model"]


def test_layout_is_read_once(written, tmp_path, monkeypatch):
    read, names = folder_module.read_json, []
    monkeypatch.setattr(folder_module, "read_json", lambda path: names.append(path.name) or read(path))
    dataset = ParameterDataset(tmp_path / "ds")
    dataset.vectors(), dataset.rows, dataset.metrics, dataset.task, dataset.base_model.build()
    assert names == ["layout.json"]
