"""`load_parameter_dataset` of what is on the Hub."""

import pytest
import torch
from hub_client import ClientError
from torch import nn

from pdiff_hf import ParameterDataset, ParameterLayout
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import LAYOUT, make_vectors, snapshot, unlist

REPO = "user/params"
OTHER = ParameterLayout.from_model(nn.Linear(2, 3))
OTHER_VECTORS = torch.arange(18.0).reshape(2, 9)

LOAD = """
from pdiff_hf.data.dataset import load_parameter_dataset
dataset, layout = load_parameter_dataset(repo, **options)
result = [layout.fingerprint, [row["parameters"].tolist() for row in dataset]]
"""


def put(hub, folder, prefix=""):
    files = {f"{prefix}{path.relative_to(folder).as_posix()}": data for path, data in snapshot(folder).items()}
    hub.put(REPO, files, "dataset")


def push(client, folder, **options):
    code = "from pdiff_hf.data.push import push_dataset; result = push_dataset(folder, repo, **options)"
    return client(code, folder=folder, repo=REPO, options=options)


@pytest.fixture
def folders(tmp_path):
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "a")
    save_parameter_dataset(OTHER_VECTORS, OTHER, tmp_path / "b")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_configs_and_revisions_are_loaded(hub, client, folders, streaming):
    push(client, folders / "a")
    push(client, folders / "b", config="linear")
    save_parameter_dataset(make_vectors(seed=1), LAYOUT, folders / "c")
    push(client, folders / "c", revision="next")
    for repo, options, layout, vectors in (
        (REPO, {}, LAYOUT, make_vectors()),
        (REPO, {"config": "default"}, LAYOUT, make_vectors()),
        (REPO, {"config": "linear"}, OTHER, OTHER_VECTORS),
        (REPO, {"revision": "next"}, LAYOUT, make_vectors(seed=1)),
        (f"{REPO}@next", {}, LAYOUT, make_vectors(seed=1)),
    ):
        found = client(LOAD, repo=repo, options={**options, "streaming": streaming})
        assert found == [layout.fingerprint, vectors.tolist()]


def test_appended_run_sends_its_own_shard_only(hub, client, folders):
    push(client, folders / "a")
    ParameterDataset(folders / "a").append(make_vectors(2, 1), {"run": ["b"] * 2})
    old = hub.files(REPO, "dataset")["data/train-00000.parquet"]
    push(client, folders / "a")
    assert hub.files(REPO, "dataset")["data/train-00000.parquet"] == old
    found = client(LOAD, repo=REPO, options={"streaming": True})
    assert found == [LAYOUT.fingerprint, torch.cat([make_vectors(), make_vectors(2, 1)]).tolist()]


def test_chunk_rows_are_streamed(hub, client, folders, monkeypatch):
    monkeypatch.setattr("pdiff_hf.data.chunks.CHUNK_VALUES", 13)
    save_parameter_dataset(make_vectors(), LAYOUT, folders / "chunked")
    push_and_load = """
from pdiff_hf.data import chunks
chunks.CHUNK_VALUES = 13
from pdiff_hf.data.push import push_dataset
push_dataset(folder, repo)
results = []
for streaming in (False, True):
    options = {"streaming": streaming}
""" + "\n".join("    " + line for line in LOAD.strip().splitlines())
    push_and_load += "\n    results.append(result)\nchunks.CHUNK_VALUES = 10**7\nresult = results"
    found = client(push_and_load, repo=REPO, folder=folders / "chunked")
    assert found == [[LAYOUT.fingerprint, make_vectors().tolist()]] * 2


def test_two_revisions_are_refused(hub, client, folders):
    push(client, folders / "a")
    with pytest.raises(ClientError, match="expected one revision, found 'v2', too"):
        client(LOAD, repo=f"{REPO}@v1", options={"revision": "v2"})


@pytest.mark.parametrize("streaming", [False, True])
def test_shard_of_another_layout_on_the_hub_is_refused(hub, client, folders, streaming):
    put(hub, folders / "a")
    other = ParameterLayout.from_model(nn.Linear(LAYOUT.num_parameters - 1, 1))
    save_parameter_dataset(make_vectors(), other, folders / "other")
    (folders / "a" / "data" / "train-00000.parquet").write_bytes(
        (folders / "other" / "data" / "train-00000.parquet").read_bytes()
    )
    unlist(folders / "a")
    put(hub, folders / "a")
    with pytest.raises(ClientError, match=r"train-00000\.parquet: expected the layout") as caught:
        client(LOAD, repo=REPO, options={"streaming": streaming})
    assert caught.value.name == "ValueError"


OPEN = """
from pdiff_hf.data.dataset import load_parameter_dataset
rows, _ = load_parameter_dataset(repo, streaming=True)
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 503}, r"the Hub has a fault \(503\)"),
        ({"status": 403}, r"may not read it \(403\)"),
        ({"cut": 0}, r"no connection to .* or it was cut"),
        ({"cut": 700}, r"no connection to .* or it was cut"),
    ],
    ids=["fault", "forbidden", "dropped", "cut"],
)
def test_trouble_while_streaming_is_of_the_connection(hub, client, folders, fault, message):
    push(client, folders / "a")
    hub.fault("GET", r"/resolve/.*parquet", **fault)
    with pytest.raises(ClientError, match=message) as caught:
        client(OPEN + "result = len(list(rows))", repo=REPO)
    assert caught.value.name == "ValueError" and "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("damaged", "Parquet file", "complete"))
    hub.faults.clear()
    assert client(OPEN + "result = len(list(rows))", repo=REPO) == 6


OFFLINE = """
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
try:
    result = len(list(ParameterDataset(repo, streaming=True).rows))
finally:
    huggingface_hub.constants.HF_HUB_OFFLINE = False
"""


def test_streaming_offline_says_so(hub, client, folders):
    push(client, folders / "a")
    client(OPEN + "result = len(list(rows))", repo=REPO)
    with pytest.raises(ClientError, match="HF_HUB_OFFLINE=1; unset it") as caught:
        client("from pdiff_hf import ParameterDataset" + OFFLINE, repo=REPO)
    assert caught.value.name == "ValueError" and "damaged" not in str(caught.value)


@pytest.mark.parametrize(("where", "listed"), [("page", True), ("page", False), ("footer", True)])
def test_damage_of_a_streamed_shard_is_found(hub, client, folders, where, listed):
    (file,) = (folders / "a" / "data").iterdir()
    data = bytearray(file.read_bytes())
    data[300 if where == "page" else -20] ^= 16
    file.write_bytes(data)
    if not listed:
        unlist(folders / "a")
    put(hub, folders / "a")
    with pytest.raises(ClientError, match=r"train-00000\.parquet is (damaged|not a complete)") as caught:
        client(OPEN + "result = len(list(rows))", repo=REPO)
    assert caught.value.name == "ValueError" and "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_that_do_not_belong_or_are_missing_are_named(hub, client, folders, streaming, monkeypatch):
    monkeypatch.setattr("pdiff_hf.data.shards.SHARD_BYTES", 4)
    save_parameter_dataset(make_vectors(3), LAYOUT, folders / "c")
    files = {path.relative_to(folders / "c").as_posix(): data for path, data in snapshot(folders / "c").items()}
    middle = files.pop("data/train-00001.parquet")
    hub.put(REPO, files, "dataset")
    with pytest.raises(ClientError, match=r"found no train-00001\.parquet; 1 of 3 with 1 rows are missing"):
        client(LOAD, repo=REPO, options={"streaming": streaming})
    hub.put(REPO, {"data/train-00001.parquet": middle, "data/train-00017.parquet": middle}, "dataset")
    with pytest.raises(ClientError, match=r"found train-00017\.parquet, which does not belong to it"):
        client(LOAD, repo=REPO, options={"streaming": streaming})
