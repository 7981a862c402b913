"""Hubs that refuse, break off, hang or are not there."""

import os
import socket

import pytest
from hub_client import DATA, PIPE, READ_TOKEN, TOKEN, Client, ClientError, download, load, one_line, push

from pdiff_hf.data.hub import download_dataset
from pdiff_hf.data.push import push_dataset
from pdiff_hf.pipelines.hub import download_pipeline


@pytest.mark.parametrize(
    ("options", "status", "headers", "message"),
    [
        ({}, 401, {}, r"\(401\).*hf auth login"),
        ({}, 403, {}, r"may not read it \(403\)"),
        ({}, 403, {"X-Error-Code": "GatedRepo"}, "access is restricted"),
        ({}, 404, {"X-Error-Code": "RepoNotFound"}, r"shows no such repository \(404\)"),
        ({}, 404, {"X-Error-Code": "RevisionNotFound"}, r"no such revision \(404\)"),
        ({}, 409, {}, r"\(409\).*try again"),
        ({}, 429, {"Retry-After": "3600"}, r"\(429\); in 3600 seconds, try again"),
        ({}, 500, {}, r"the Hub has a fault \(500\)"),
        ({}, 503, {"Retry-After": "3600"}, r"the Hub has a fault \(503\)"),
        ({}, 418, {"X-Error-Message": f"no {TOKEN}"}, r"refuses the request \(418: no hf_…"),
    ],
)
def test_refusals_end_in_one_line(repos, client, options, status, headers, message):
    repos.fault("GET", "/api/(models|datasets)/", status=status, headers=headers, body=b'{"error": "no"}')
    for attempt in (load, download):
        with pytest.raises(ClientError, match=message) as caught:
            attempt(client, **options)
        one_line(caught)
        assert client.slept == 0


@pytest.mark.parametrize(
    ("method", "route", "status", "message"),
    [
        ("POST", "/preupload/", 401, r"\(401\).*hf auth login"),
        ("POST", "/commit/", 403, r"may not write to it \(403\)"),
        ("POST", "/commit/", 409, r"somebody else is changing it \(409\); nothing was committed"),
        ("POST", "/commit/", 412, r"somebody else is changing it \(412\)"),
        ("POST", "/commit/", 429, r"too many requests \(429\)"),
        ("POST", "/preupload/", 503, r"the Hub has a fault \(503\)"),
        ("PUT", "/objects/", 500, r"the Hub has a fault \(500\).*not sent twice"),
        ("POST", "/objects/batch", 404, r"no such repository \(404\)"),
        ("POST", "/api/repos/create", 403, r"may not write to it \(403\)"),
    ],
)
def test_refused_push_ends_in_one_line_and_changes_nothing(hub, client, artefacts, method, route, status, message):
    hub.fault(method, route, status=status, body=b'{"error": "no"}')
    with pytest.raises(ClientError, match=message) as caught:
        push(client, artefacts)
    one_line(caught)
    # 23 s of waiting for one request, and two large files are sent at the same time.
    assert client.slept <= 2 * 23
    assert not hub.repos or hub.files(DATA, "dataset") == {}


def test_rate_limit_is_waited_for_when_short_and_said_when_long(hub, client, artefacts):
    hub.fault("POST", "/preupload/", status=429, headers={"Retry-After": "3"}, times=2)
    push(client, artefacts)
    assert 6 <= client.slept <= 10
    (artefacts["folder"] / "dataset" / "extra.png").write_bytes(b"png")
    hub.fault("POST", "/preupload/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(ClientError, match="in 3600 seconds, push again"):
        push(client, artefacts)
    assert client.slept == 0
    (artefacts["folder"] / "dataset" / "extra.png").unlink()


def test_wrong_missing_and_reading_tokens(repos, client, artefacts):
    with pytest.raises(ClientError, match=r"does not accept the token.*\(401\)") as caught:
        load(client, token="hf_SecretAndWrong")
    one_line(caught)
    with pytest.raises(ClientError, match=r"may not write to it \(403\)") as caught:
        push(client, artefacts, repo="user/new", token=READ_TOKEN)
    one_line(caught)
    repos.repos["model", PIPE].private = True
    with pytest.raises(ClientError, match=r"no such repository \(401\); check the name, and if it is private, log in"):
        load(client, token=False)
    load(client, token=READ_TOKEN)


@pytest.mark.parametrize("name", ["user/../pipe", "a/b/c", "user/pi pe", "../../etc", "user/-pipe"])
def test_names_that_are_none_are_refused_without_asking(repos, client, artefacts, name):
    for attempt in (load, download):
        with pytest.raises(ClientError, match="is no name of a repository") as caught:
            attempt(client, repo=name)
        one_line(caught)
    with pytest.raises(ClientError, match="is no name of a repository"):
        push(client, artefacts, repo=name)
    assert not repos.log


@pytest.mark.parametrize("config", ["../up", "/abs", "a/b", "", "data", ".hidden"])
def test_configs_that_are_none_are_refused(repos, client, config):
    with pytest.raises(ClientError, match="expected a config of letters"):
        download(client, config=config)


@pytest.mark.slow
def test_unreachable_hub_fails_within_10_seconds(tmp_path, artefacts):
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for server in (closed, silent):
            (tmp_path / str(server.fileno())).mkdir()
            client = Client(tmp_path / str(server.fileno()), f"http://127.0.0.1:{server.getsockname()[1]}")
            client("import pdiff_hf.hub.upload, pdiff_hf.pipelines.pipeline_pdiff")
            commit = {"revision": "0" * 40}
            for attempt in (lambda: load(client), lambda: push(client, artefacts), lambda: download(client, **commit)):  # noqa: B023
                with pytest.raises(ClientError, match=r"no connection to http://127.0.0.1") as caught:
                    attempt()
                one_line(caught)
                assert caught.value.seconds + caught.value.slept < 10
            client.close()


def test_cut_download_is_tried_again_and_then_said(repos, client):
    repos.fault("GET", r"/resolve/.*unet/diffusion", cut=1000, times=1)
    load(client)
    client("import shutil, os; shutil.rmtree(os.environ['HF_HOME'])")
    repos.fault("GET", r"/resolve/.*unet/diffusion", cut=0)
    with pytest.raises(ClientError, match="try again") as caught:
        load(client)
    one_line(caught)
    repos.faults.clear()
    load(client)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "base/model.safetensors"])
def test_wrong_content_of_the_right_length_is_refused_and_not_kept(repos, client, artefacts, name):
    data = artefacts["pipeline"][name]
    repos.fault("GET", f"/resolve/.*{name}", replace=data[:-4] + b"\0\1\2\3")
    with pytest.raises(ClientError, match=f"{name} came damaged: expected sha256") as caught:
        load(client)
    one_line(caught)
    repos.faults.clear()
    load(client)


def test_truncated_file_is_refused(repos, client, artefacts):
    data = artefacts["dataset"]["data/train-00000.parquet"]
    repos.fault("GET", r"/resolve/.*parquet", replace=data[:-10])
    with pytest.raises(ClientError, match="try again") as caught:
        download(client)
    one_line(caught)


def test_offline_uses_the_cache_and_says_what_is_not_in_it(repos, client, tmp_path, artefacts):
    # This process is offline: HF_HUB_OFFLINE=1 is set before anything is imported.
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    load(client, cache_dir=str(tmp_path))
    assert (download_pipeline(PIPE, cache_dir=tmp_path) / "base" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"user/data is not in the cache, and HF_HUB_OFFLINE=1; unset it") as caught:
        download_dataset(DATA, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot push while HF_HUB_OFFLINE=1"):
        push_dataset(artefacts["folder"] / "dataset", DATA)


def test_what_is_cached_loads_when_the_hub_is_down(repos, client):
    load(client)
    repos.fault("GET", "/api/", status=503)
    repos.fault("HEAD", "/", status=503)
    load(client)
    assert client.seconds + client.slept < 10
