"""Repositories that are malformed or hostile."""

import json
import os

import pytest
from hub_client import DATA, PIPE, ClientError, download, load, one_line


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "unet/../../evil.txt",
        "/tmp/evil.txt",
        "data/train-/../../../evil.parquet",
        "C:\\evil.txt",
        "a//b",
    ],
)
def test_names_that_leave_the_folder_are_refused_before_any_download(repos, client, tmp_path, name):
    repos.put(PIPE, {name: b"evil"})
    repos.put(DATA, {name: b"evil"}, "dataset")
    before = set(tmp_path.rglob("*"))
    for attempt in (load, download):
        with pytest.raises(ClientError, match="expected files inside of the repository, found the name") as caught:
            attempt(client)
        one_line(caught)
    assert set(tmp_path.rglob("*")) == before
    assert not list(client.folder.parent.rglob("evil*")) and not os.path.exists("/tmp/evil.txt")
    assert repos.count("GET", "evil") == 0


def test_commit_that_is_no_hash_is_refused(repos, client):
    repo = repos.repos["model", PIPE]
    repo.branches["main"] = "../../evil"
    repo.commits["../../evil"] = next(reversed(repo.commits.values()))
    with pytest.raises(ClientError, match="expected the hash of a commit") as caught:
        load(client)
    one_line(caught)
    assert not list(client.folder.parent.rglob("evil*"))


def change_index(artefacts, **changes):
    index = json.loads(artefacts["pipeline"]["model_index.json"])
    return {"model_index.json": json.dumps({**index, **changes}).encode()}


def change_base(artefacts, **changes):
    base = json.loads(artefacts["pipeline"]["model_index.json"])["base_model"]
    return change_index(artefacts, base_model={**base, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: {"model_index.json": b"{"}, "is not valid JSON"),
        (lambda a: {"model_index.json": b"[]"}, "expected a PDiffPipeline"),
        (lambda a: change_index(a, _class_name="StableDiffusionPipeline"), "expected a PDiffPipeline"),
        (lambda a: change_index(a, unet=["os", "system"]), "component 'unet' should come from one of"),
        (lambda a: change_index(a, unet=["evil_module", "UNet"]), "component 'unet' should come from one of"),
        (lambda a: change_index(a, unet=["diffusers"]), "component 'unet' should come from one of"),
        (lambda a: change_base(a, weights="../../../etc/passwd"), "weights must be a path inside its own folder"),
        (lambda a: change_base(a, weights="/etc/passwd"), "weights must be a path inside its own folder"),
        (lambda a: change_base(a, weights="unet/config.json"), "was changed or is damaged"),
        (lambda a: change_base(a, weights="base/none.safetensors"), "expected a file 'base/none.safetensors'"),
        (lambda a: change_base(a, sha256="0" * 64), "was changed or is damaged"),
        (lambda a: change_base(a, extra=1), "expected the keys"),
        (lambda a: change_index(a, base_model="os:system"), "model_index.json"),
        (lambda a: {"base/model.safetensors": b"../../../../etc/passwd"}, "was changed or is damaged"),
    ],
)
def test_malformed_and_hostile_pipelines_are_refused(repos, client, artefacts, make, message):
    repos.put(PIPE, make(artefacts))
    with pytest.raises(ClientError, match=message) as caught:
        load(client)
    one_line(caught)


def test_import_path_in_a_base_model_is_not_followed(repos, client, artefacts):
    repos.put(PIPE, change_base(artefacts, name="os:system", kwargs={"command": "touch evil"}))
    with pytest.raises(ClientError, match="if you trust its code, give trusted_imports") as caught:
        client("from pdiff_hf import PDiffPipeline; PDiffPipeline.from_pretrained(repo).base_model.build()", repo=PIPE)
    one_line(caught)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pth", "weights.pkl", "unet.ckpt"])
def test_pickles_are_not_read(repos, client, artefacts, name):
    files = {
        path: data
        for path, data in artefacts["pipeline"].items()
        if path != "unet/diffusion_pytorch_model.safetensors"
    }
    repos.put("user/pickled", {**files, f"unet/{name}": b"evil"})
    with pytest.raises(ClientError, match=r"expected safetensors, found .* which runs code when it is read") as caught:
        load(client, repo="user/pickled")
    one_line(caught)
    assert repos.count("GET", "unet/.*(bin|pth|pkl|ckpt)") == 0


def change_layout(artefacts, **changes):
    return {"layout.json": json.dumps({**json.loads(artefacts["dataset"]["layout.json"]), **changes}).encode()}


def dataset_base(artefacts, **changes):
    return change_layout(
        artefacts, base_model={**json.loads(artefacts["dataset"]["layout.json"])["base_model"], **changes}
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: {"layout.json": b"\xff\xfe"}, "is not valid JSON"),
        (lambda a: {"layout.json": b"[]"}, "layout.json: layout: malformed"),
        (lambda a: change_layout(a, fingerprint="0"), "it was edited or damaged"),
        (lambda a: change_layout(a, schema=9), "expected schema 1, found 9"),
        (lambda a: change_layout(a, tensors=[]), "needs at least one tensor"),
        (lambda a: dataset_base(a, weights="../../../../etc/passwd"), "weights must be a path inside its own folder"),
        (lambda a: dataset_base(a, weights="~root/../x"), "weights must be a path inside its own folder"),
        (lambda a: dataset_base(a, library="pickle"), "library must be one of"),
        (lambda a: dataset_base(a, sha256="0" * 64), "was changed or is damaged"),
        (lambda a: {"base/model.safetensors": b"\0" * 64}, "was changed or is damaged"),
    ],
)
def test_malformed_and_hostile_datasets_are_refused_before_their_data(repos, client, artefacts, make, message):
    repos.put(DATA, make(artefacts), "dataset")
    with pytest.raises(ClientError, match=message) as caught:
        download(client)
    one_line(caught)


def test_repositories_of_another_kind_are_said_to_be_so(repos, client):
    repos.put("user/bert", {"config.json": b"{}"})
    repos.put("user/text", {"train.csv": b"a,b"}, "dataset")
    with pytest.raises(ClientError, match=r"expected model_index\.json, found config\.json"):
        load(client, repo="user/bert")
    with pytest.raises(ClientError, match=r"expected layout\.json, found train\.csv"):
        download(client, repo="user/text")
