"""`pdiff doctor`: what is there, what is missing, and who is logged in."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata

import pytest

from pdiff_hf.cli import doctor

TOKEN = "hf_of_nobody"


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers with the status and the name of `answer`; nobody is logged in at first."""
    answer = {"status": 200, "name": "ada", "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer["asked"].append((self.path, self.headers["authorization"]))
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(json.dumps({"name": answer["name"]}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    yield answer
    server.shutdown()
    server.server_close()


def log_in(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)


def test_what_is_needed_is_there(pdiff, hub):
    code, out, error = pdiff("doctor")
    assert code == 0, error
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert lines["torch"] == metadata.version("torch") and lines["login"].startswith("not logged in")
    assert int(lines["threads"]) >= 1 and float(lines["memory_free_gb"]) > 0
    # Who works on the package has its tools; nobody else needs them.
    assert "pytest" not in lines and out.endswith("Everything that is needed is there.\n")
    assert not hub["asked"]


def test_what_is_missing_or_too_old_is_named_with_the_command_that_mends_it(pdiff, hub, monkeypatch):
    versions, known = {"timm": None, "scipy": "0.1", "peft": None}, metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or known(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, out, _ = pdiff("doctor", "--json")
    found = json.loads(out)
    assert code == 2 and found["broken"] == ["scipy", "timm"] and found["packages"]["timm"] is None
    code, out, _ = pdiff("doctor")
    told = out.splitlines()[-2:]
    assert code == 2 and "pip install 'timm>=" in told[1] and told[0].startswith("scipy: 0.1, >=")
    # An extra that nobody has asked for is no fault.
    assert "missing; pip install 'pdiff-hf[adapters]'" in out


@pytest.mark.parametrize(
    "status, told", [(200, "ada"), (401, "the token is not valid"), (503, "unknown: the Hub answered 503")]
)
def test_who_is_logged_in_is_said_and_no_token(status, told, pdiff, hub, monkeypatch):
    log_in(monkeypatch)
    hub["status"] = status
    code, out, error = pdiff("doctor")
    (login,) = [line for line in out.splitlines() if line.split()[:1] == ["login"]]
    assert code == 0 and told in login and hub["asked"] == [("/api/whoami-v2", f"Bearer {TOKEN}")]
    assert TOKEN not in out + error


def test_a_hub_that_does_not_answer_is_said(pdiff, hub, monkeypatch):
    log_in(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = pdiff("doctor")
    assert code == 0 and "the Hub cannot be reached" in out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in pdiff("doctor")[1]
