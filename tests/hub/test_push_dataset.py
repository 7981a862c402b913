import shutil

import pytest
import torch
from hub_client import ClientError

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors, snapshot

REPO = "user/params"


def save(folder, rows=6, seed=0, layout=LAYOUT, base=None, vectors=None):
    columns = {"test_accuracy": [0.5 + row / 100 for row in range(rows)]}
    save_parameter_dataset(make_vectors(rows, seed) if vectors is None else vectors, layout, folder, base, columns)
    return folder


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(mlp3(**NETWORK), tmp_path / "s")
    return save(tmp_path / "dataset", base=base)


def push(client, folder, repo=REPO, **options):
    code = "from pdiff_hf.data.push import push_dataset; result = push_dataset(folder, repo, **options)"
    return client(code, folder=folder, repo=repo, options=options)


def download(client, repo=REPO, **options):
    code = "from pdiff_hf.data.hub import download_dataset; result = str(download_dataset(repo, **options))"
    return client(code, repo=repo, options=options)


READ = """
import torch, datasets
dataset = datasets.load_dataset(*names, split="train")
result = {"columns": {name: str(value) for name, value in dataset.features.items()},
          "vectors": dataset.with_format("torch")["parameters"][:].tolist(), "accuracy": dataset["test_accuracy"][:]}
"""


def test_pushed_dataset_comes_back_whole(hub, client, folder):
    push(client, folder)
    (folder / "stray.log").write_text("not to be pushed")
    push(client, folder)
    assert set(hub.files(REPO, "dataset")) == {
        path.relative_to(folder).as_posix() for path in snapshot(folder) if path.name != "stray.log"
    }
    code = """
from pdiff_hf import load_base_model, load_parameter_dataset
dataset, layout = load_parameter_dataset(folder)
result = [layout.fingerprint, dataset["parameters"][:].tolist(), type(load_base_model(folder).build()).__name__]
"""
    found = client(code, folder=download(client))
    assert found == [LAYOUT.fingerprint, make_vectors().tolist(), "Sequential"]


def test_plain_datasets_gives_a_typed_table(hub, client, folder):
    push(client, folder)
    found = client(READ, names=[REPO])
    assert found["vectors"] == make_vectors().tolist() and len(found["accuracy"]) == 6
    assert found["columns"]["parameters"] == f"List(Value('float32'), length={D})"
    assert found["columns"]["step"] == "Value('int64')" and found["columns"]["run"] == "Value('string')"


def test_plain_datasets_streams(hub, client, folder):
    push(client, folder)
    code = """
import datasets
rows = list(datasets.load_dataset(repo, split="train", streaming=True).with_format("torch"))
result = [row["parameters"].tolist() for row in rows]
"""
    assert client(code, repo=REPO) == make_vectors().tolist()


def test_addresses_for_streaming_download_no_shard(hub, client, folder):
    push(client, folder)
    hub.log.clear()
    code = """
from pdiff_hf.data.hub import open_remote_dataset
folder, files = open_remote_dataset(repo)
import datasets
rows = None if not stream else datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
result = [files, rows and [row["step"] for row in rows]]
"""
    commit = hub.repos["dataset", REPO].branches["main"]
    files, _ = client(code, repo=REPO, stream=False)
    assert files == [f"hf://datasets/{REPO}@{commit}/data/train-00000.parquet"]
    assert hub.count("GET", "parquet") == 0
    assert client(code, repo=REPO, stream=True)[1] == list(range(6))


def test_several_configs_live_in_one_repository(hub, client, folder, tmp_path):
    other_layout = ParameterLayout.from_model(mlp3(in_features=2, hidden=(2,), num_classes=2))
    vectors = torch.randn(3, other_layout.num_parameters, generator=torch.Generator().manual_seed(1))
    other = save(tmp_path / "other", 3, layout=other_layout, vectors=vectors)
    push(client, folder)
    push(client, other, config="tiny")
    assert client(READ, names=[REPO, "tiny"])["vectors"] == vectors.tolist()
    assert client(READ, names=[REPO, "default"])["vectors"] == make_vectors().tolist()
    assert download(client, config="tiny").endswith("/tiny")
    assert b"config_name: default" in hub.files(REPO, "dataset")["README.md"]
    with pytest.raises(ClientError, match=r"expected other/layout\.json, found .* or of another config"):
        download(client, config="other")


def test_another_layout_is_not_mixed_in(hub, client, folder, tmp_path):
    push(client, folder)
    before = hub.files(REPO, "dataset")
    layout = ParameterLayout.from_model(mlp3(in_features=2, hidden=(2,), num_classes=2))
    vectors = torch.zeros(3, layout.num_parameters)
    with pytest.raises(ClientError, match="push it as a config of its own"):
        push(client, save(tmp_path / "other", 3, layout=layout, vectors=vectors))
    assert hub.files(REPO, "dataset") == before


def test_grown_dataset_sends_new_shards_only_and_a_shrunken_one_removes(hub, client, folder, tmp_path):
    push(client, folder)
    shutil.copytree(folder, tmp_path / "before")
    dataset = ParameterDataset(folder)
    columns = {"run": ["new"], **{name: [0.5] for name in dataset.metrics}}
    dataset.append(torch.zeros(1, dataset.layout.num_parameters), columns)
    name, uploads = "data/train-00001.parquet", hub.count("PUT", "/objects/")
    push(client, folder)
    assert name in hub.files(REPO, "dataset") and hub.count("PUT", "/objects/") == uploads + 1
    push(client, tmp_path / "before")
    assert name not in hub.files(REPO, "dataset")


def test_readme_that_a_person_edited_is_kept(hub, client, folder):
    push(client, folder)
    text = hub.files(REPO, "dataset")["README.md"] + b"\nWritten by hand.\n"
    hub.put(REPO, {"README.md": text}, "dataset")
    (folder / "stats.json").write_text((folder / "stats.json").read_text() + "\n")
    push(client, folder)
    assert b"Written by hand." in hub.files(REPO, "dataset")["README.md"]


def test_300_rows_of_2048_are_pushed_and_loaded_in_5_seconds_each(hub, client, tmp_path):
    layout = ParameterLayout.from_model(torch.nn.Linear(2047, 1))
    assert layout.num_parameters == 2048
    vectors = torch.randn(300, 2048, generator=torch.Generator().manual_seed(0))
    push(client, save(tmp_path / "dataset", 300, layout=layout, vectors=vectors))
    pushed = client.seconds
    client(READ.replace('"vectors": dataset.with_format("torch")["parameters"][:].tolist(), ', ""), names=[REPO])
    loaded = client.seconds
    download(client)
    assert pushed <= 5 and loaded <= 5 and client.seconds <= 5, (pushed, loaded, client.seconds)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "layout.json").unlink(), "found no layout.json"),
        (lambda folder: (folder / "data" / "train-00000.parquet").unlink(), "expected Parquet shards"),
        (lambda folder: (folder / "data" / "train-00000.parquet").write_bytes(b"PAR1"), "is not a complete Parquet"),
        (lambda folder: (folder / "base" / "model.safetensors").write_bytes(b""), "was changed or is damaged"),
        (lambda folder: (folder / "recording.arrow").write_bytes(b""), "recording that was not closed"),
    ],
    ids=["layout", "no shard", "shard", "base", "recording"],
)
def test_incomplete_dataset_is_not_pushed(hub, client, folder, spoil, message):
    spoil(folder)
    with pytest.raises(ClientError, match=message) as caught:
        push(client, folder)
    assert caught.value.name == "ValueError" and not hub.repos
