"""A process with the real clients, which the tests tell what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

# In no file and no message may this be found.
TOKEN = "hf_SecretOfTheTestsThatMustNotBeSeen0"
READ_TOKEN = "hf_SecretThatMayOnlyReadAndNotBeSeen00"


class ClientError(Exception):
    """An exception in the client process: name, message and traceback there."""

    def __init__(self, answer):
        super().__init__(f"{answer['error']}: {answer['message']}")
        self.name, self.message, self.traceback = answer["error"], answer["message"], answer["traceback"]
        self.seconds, self.slept = answer["seconds"], answer["slept"]


class Client:
    """A process with the real clients; `client(code, **variables)` gives the value of `result` there."""

    def __init__(self, folder: Path, endpoint: str):
        self.folder = folder
        self.output = folder / "output.txt"
        hub = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        environment |= {**hub, **quiet, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=environment,
                cwd=folder,
            )
        self.seconds = self.slept = 0.0

    def __call__(self, code: str, **variables):
        variables = {k: str(v) if isinstance(v, Path) else v for k, v in variables.items()}
        self.process.stdin.write(json.dumps({"code": code, "variables": variables}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client process ended:\n{self.output.read_text()[-4000:]}")
        answer = json.loads(line)
        self.seconds, self.slept = answer["seconds"], answer["slept"]
        if "error" in answer:
            raise ClientError(answer)
        return answer["result"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


PIPE, DATA = "user/pipe", "user/data"


def load(client, repo=PIPE, **options):
    code = "from pdiff_hf import PDiffPipeline; PDiffPipeline.from_pretrained(repo, **options)"
    return client(code, repo=repo, options=options)


def download(client, repo=DATA, **options):
    code = "from pdiff_hf.data.hub import download_dataset; result = str(download_dataset(repo, **options))"
    return client(code, repo=repo, options=options)


def push(client, artefacts, repo=DATA, **options):
    code = "from pdiff_hf.data.push import push_dataset; result = push_dataset(folder, repo, **options)"
    return client(code, folder=artefacts["folder"] / "dataset", repo=repo, options=options)


def one_line(caught):
    """The message, after checking that it is one line of a ValueError without a token."""
    error = caught.value
    assert error.name == "ValueError", error.traceback
    assert "\n" not in error.message and "hf_Secret" not in error.message + error.traceback
    return error.message
