"""The page as a Space: what is committed, and that the committed files are what a Space is run by."""

import json

import pytest
from hub_client import DATA, PIPE, ClientError

from pdiff_hf.hub.card_text import split_card

SPACE = "user/page"
PUSH = "from pdiff_hf.app.push import push_space; result = push_space(repo, pipeline, dataset, **options)"


def push(client, pipeline=PIPE, dataset=None, **options):
    return client(PUSH, repo=SPACE, pipeline=pipeline, dataset=dataset, options=options)


def test_a_space_names_its_pipeline_and_its_dataset(repos, client):
    push(client, dataset=DATA)
    files = repos.files(SPACE, "space")
    assert {*files} >= {"README.md", "app.py", "requirements.txt", "settings.json"}
    assert json.loads(files["settings.json"]) == {"pipeline": PIPE, "dataset": DATA}
    metadata, text = split_card(files["README.md"].decode())
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", [PIPE])
    assert metadata["datasets"] == [DATA] and f"`{PIPE}`" in text
    assert files["requirements.txt"].decode().startswith("pdiff-hf[app]>=")
    compile(files["app.py"], "app.py", "exec")
    assert ("model", SPACE) not in repos.repos


def test_a_second_push_keeps_what_a_person_wrote_around(repos, client):
    push(client)
    card = repos.files(SPACE, "space")["README.md"].decode()
    repos.put(SPACE, {"README.md": (card + "\nOurs.\n").encode()}, "space")
    push(client, dataset=DATA)
    files = repos.files(SPACE, "space")
    assert files["README.md"].decode().endswith("Ours.\n") and json.loads(files["settings.json"])["dataset"] == DATA


@pytest.mark.parametrize(("pipeline", "message"), [("user/none", "no such repository"), ("./here", "push it first")])
def test_without_a_pipeline_on_the_hub_nothing_is_made(repos, client, pipeline, message):
    with pytest.raises(ClientError, match=message):
        push(client, pipeline)
    assert ("space", SPACE) not in repos.repos


def test_the_name_of_the_space_is_that_of_the_pipeline_unless_given(repos, client):
    client(PUSH, repo=PIPE, pipeline=None, dataset=None, options={})
    assert json.loads(repos.files(PIPE, "space")["settings.json"])["pipeline"] == PIPE
