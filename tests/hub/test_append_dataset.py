import json
import shutil

import pytest
import torch
from hub_client import ClientError

from pdiff_hf import BaseModel, ParameterLayout
from pdiff_hf.data.integrity import find_shards
from pdiff_hf.data.stats import compute_stats
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, make_vectors

REPO = "user/params"


def save(folder, run, rows=4, base_seed=0, layout=LAYOUT, vectors=None, **columns):
    torch.manual_seed(base_seed)
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(mlp3(**NETWORK), folder / "s")
    vectors = make_vectors(rows, seed=len(run)) if vectors is None else vectors
    accuracy = columns or {"test_accuracy": [0.5 + row / 100 for row in range(rows)]}
    save_parameter_dataset(vectors, layout, folder / "ds", base, {"run": [run] * rows, **accuracy})
    return folder / "ds"


def push(client, folder, function="push_dataset", **options):
    code = f"from pdiff_hf.data.push import {function} as push; result = push(folder, repo, **options)"
    return client(code, folder=folder, repo=REPO, options=options)


def append(client, folder, **options):
    return push(client, folder, "append_dataset", **options)


READ = """
from pdiff_hf import load_parameter_dataset
import datasets
dataset, layout = load_parameter_dataset(repo, config=config)
plain = datasets.load_dataset(repo, config or "default", split="train")
result = [dataset["run"][:], dataset["parameters"][:].tolist(), plain.num_rows]
"""


@pytest.mark.parametrize("config", [None, "tiny"])
def test_new_runs_stand_behind_the_old_ones(hub, client, tmp_path, config):
    first, second = save(tmp_path / "a", "run-0"), save(tmp_path / "b", "run-10", rows=3)
    push(client, first, config=config)
    before = hub.files(REPO, "dataset")
    hub.log.clear()
    append(client, second, config=config)
    prefix = f"{config}/" if config else ""
    shard = f"{prefix}data/train-00000.parquet"
    after = hub.files(REPO, "dataset")
    assert after[shard] == before[shard] and hub.count("POST", "/commit/") == 1
    assert set(after) - set(before) == {f"{prefix}data/train-00001.parquet"}
    runs, vectors, plain = client(READ, repo=REPO, config=config)
    assert runs == ["run-0"] * 4 + ["run-10"] * 3 and plain == 7
    assert vectors == [*make_vectors(4, seed=5).tolist(), *make_vectors(3, seed=6).tolist()]
    # As if all rows had been in one folder
    shutil.copyfile(find_shards(second)[0], first / "data" / "train-00001.parquet")
    expected = compute_stats(find_shards(first), LAYOUT, ["test_accuracy"])
    found = json.loads(after[f"{prefix}stats.json"])
    assert found["runs"] == expected["runs"] and found["num_rows"] == 7
    assert found["columns"]["test_accuracy"] == pytest.approx(expected["columns"]["test_accuracy"])
    for one, other in zip(found["tensors"], expected["tensors"], strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-7) and one["std"] == pytest.approx(other["std"])
    if config is None:
        assert "run-10" in after["README.md"].decode()


def test_appended_rows_may_lack_a_metric(hub, client, tmp_path):
    push(client, save(tmp_path / "a", "run-0", test_accuracy=[0.5] * 4, val_accuracy=[0.25] * 4))
    append(client, save(tmp_path / "b", "run-10"))
    code = "import datasets\nresult = datasets.load_dataset(repo, split='train')['val_accuracy'][:]"
    assert client(code, repo=REPO) == [0.25] * 4 + [None] * 4
    stats = json.loads(hub.files(REPO, "dataset")["stats.json"])
    assert stats["columns"]["val_accuracy"]["count"] == 4 and stats["columns"]["test_accuracy"]["count"] == 8


def tiny(folder):
    layout = ParameterLayout.from_model(mlp3(in_features=2, hidden=(2,), num_classes=2))
    return save(folder, "run-10", layout=layout, vectors=torch.zeros(4, layout.num_parameters))


REFUSED = {
    "same run": (lambda folder: save(folder, "run-0"), "already holds run 'run-0'"),
    "other layout": (tiny, "push it as a config of its own"),
    "other metric": (lambda folder: save(folder, "run-10", loss=[0.1] * 4), "expected no metrics but test_accuracy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_there_is_refused(hub, client, tmp_path, name):
    push(client, save(tmp_path / "a", "run-0"))
    before = hub.files(REPO, "dataset")
    make, message = REFUSED[name]
    with pytest.raises(ClientError, match=message) as caught:
        append(client, make(tmp_path / "b"))
    assert caught.value.name == "ValueError" and hub.files(REPO, "dataset") == before


@pytest.mark.parametrize("part", ["head", "all"])
def test_base_model_of_other_weights_is_compared_by_what_the_layout_leaves_out(hub, client, tmp_path, part):
    """Of whole networks nothing is left, and the weights on the Hub need not be read."""
    layout = ParameterLayout.from_model(mlp3(**NETWORK), part)
    options = {"layout": layout, "vectors": torch.ones(4, layout.num_parameters)}
    push(client, save(tmp_path / "a", "run-0", **options))
    before = hub.files(REPO, "dataset")
    hub.log.clear()
    other = save(tmp_path / "b", "run-10", base_seed=1, **options)
    if part == "all":
        append(client, other)
        assert client(READ, repo=REPO, config=None)[0] == ["run-0"] * 4 + ["run-10"] * 4
        assert hub.files(REPO, "dataset")["base/model.safetensors"] == before["base/model.safetensors"]
        return
    with pytest.raises(ClientError, match=rf"{other} and {REPO} .*: tensor '\S+' of the base model differs"):
        append(client, other)
    assert hub.files(REPO, "dataset") == before


def test_nothing_to_append_to(hub, client, tmp_path):
    with pytest.raises(ClientError, match="expected a parameter dataset to append to, found none"):
        append(client, save(tmp_path / "a", "run-0"))
    assert not hub.repos


def test_two_who_append_at_once_do_not_overwrite_each_other(hub, client, tmp_path):
    """Somebody else's commit comes between reading and committing: both shards would have the same number."""
    push(client, save(tmp_path / "a", "run-0"))
    code = """
import pdiff_hf.data.push as module
from pdiff_hf.data.push import append_dataset
write = module.write_dataset_card
def meanwhile(folder):
    module.write_dataset_card = write
    append_dataset(other, repo)
    return write(folder)
module.write_dataset_card = meanwhile
append_dataset(mine, repo)
"""
    mine, other = save(tmp_path / "b", "run-10"), save(tmp_path / "c", "run-200")
    with pytest.raises(ClientError, match="somebody else is changing it"):
        client(code, repo=REPO, mine=mine, other=other)
    assert client(READ, repo=REPO, config=None)[0] == ["run-0"] * 4 + ["run-200"] * 4
    append(client, mine)
    assert len(client(READ, repo=REPO, config=None)[0]) == 12
