"""The documents whose examples go over the Hub, see `documents.py`."""

import os

import pytest

from documents import Session, read_blocks, vit

COMMAND = """
import os, sys
os.chdir(folder)
sys.argv = ["pdiff", *arguments]
from pdiff_hf.cli import main
try:
    main()
    result = 0
except SystemExit as stop:
    result = stop.code or 0
"""


def saved(folder):
    vit().save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["docs/hub.md", "docs/import.md"])
def test_examples_run_in_order(name, hub, client, tiny_run, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for repo, branch in (("name", "step1000"), ("name", "step2000"), ("a", "main"), ("b", "main"), ("c", "main")):
        hub.put(f"user/{repo}", saved(tmp_path / f"{repo}-{branch}"), branch=branch)
    hub.put("user/name", saved(tmp_path / "name-first"))
    hub.put("user/name", saved(tmp_path / "name-second"))

    def call(*arguments):
        before = client.output.stat().st_size
        code = client(COMMAND, folder=folder, arguments=arguments)
        with open(client.output, encoding="utf-8") as output:
            output.seek(before)
            return code, output.read()

    session = Session(call, folder, tiny_run)
    for block in read_blocks(name):
        session.run(block)
    assert os.getcwd() == str(folder)
