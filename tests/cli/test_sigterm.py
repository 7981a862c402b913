"""SIGTERM, wherever it comes, ends a command as Ctrl-C does."""

import signal

from safetensors.torch import save_file

from factories import make_network


def test_sigterm_in_the_middle_of_an_import_leaves_nothing_behind(pdiff, tmp_path, monkeypatch):
    factory = """
import os, signal
from pathlib import Path

def build():
    assert Path(os.environ["PARTIAL"]).is_dir()
    signal.raise_signal(signal.SIGTERM)
"""
    (tmp_path / "sent_sigterm.py").write_text(factory, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PARTIAL", str(tmp_path / ".out.partial"))
    for seed in range(2):
        save_file(dict(make_network(seed).state_dict()), tmp_path / f"{seed}.safetensors")
    before, names = signal.getsignal(signal.SIGTERM), {path.name for path in tmp_path.iterdir()}
    base = ["--base", "import:sent_sigterm:build", "--trust", "sent_sigterm"]
    code, _, err = pdiff("import", *tmp_path.glob("*.safetensors"), "--out", tmp_path / "out", *base)
    assert (code, err.splitlines()[-1]) == (143, "Error: ended by SIGTERM; what was complete before is kept.")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == names
    assert signal.getsignal(signal.SIGTERM) == before
