"""The table of stages, on a pseudo-terminal and without one."""

import io
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

from factories import TINY_RUN
from pdiff_hf.cli.app import app
from pdiff_hf.cli.live import StageTable
from pdiff_hf.cli.runs import next_commands
from pdiff_hf.files import read_json
from pdiff_hf.progress import ProgressBar, watched_by
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.runs.folder import GATE_FILE


def sets(*others):
    """The options of a tiny run, with others in the place of its own."""
    kept = dict(override.split("=", 1) for override in (*TINY_RUN, "evaluate.fine_tune=false", *others))
    return [word for key, value in kept.items() for word in ("--set", f"{key}={value}")]


def drawn(table):
    """What a table looks like."""
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def on_terminal(arguments, columns=120, environment=(), until=None, seconds=300):
    """Exit code and what a terminal receives of `pdiff`; Ctrl-C is typed once `until` is seen."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40", **dict(environment)}
    environment = {key: value for key, value in environment.items() if value is not None}
    process = subprocess.Popen(
        [sys.executable, "-m", "pdiff_hf", *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(follower)
    received, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([leader], [], [], 0.2)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:
                break
            received += chunk
            if until is not None and until in received:
                os.write(leader, b"\x03")
                until = None
        elif process.poll() is not None:
            break
    if process.poll() is None:
        time.sleep(0.5)
    os.close(leader)
    # Colours are left out, movements of the cursor stay.
    return process.wait(30), re.sub(r"\x1b\[[0-9;]*m", "", received.decode("utf-8", "replace"))


def test_the_table_says_what_every_stage_has_found(tiny_run):
    table = StageTable(tiny_run)
    table.began("collect")
    table.advanced("collect", 3, 12, "loss 0.5")
    assert re.search(r"collect +25% +3/12 +\d+\.\d +collect, loss 0\.5", drawn(table))
    for stage in ("collect", "autoencoder", "diffusion", "generate", "evaluate"):
        table.began(stage)
        table.ended(stage, 1.25)
    text = drawn(table)
    metrics, gate = Metrics.read(tiny_run / "report" / "metrics.json"), read_json(tiny_run / "autoencoder" / GATE_FILE)
    assert re.search(r"collect +done +1\.2 +\d+ checkpoints, accuracy \d", text)
    assert f"{gate['explained_variance']:.1%} explained" in text
    assert re.search(r"diffusion +done +1\.2 +loss on unseen \d+\.\d+, Gaussian's \d", text)
    assert f"generated {metrics.groups['generated'].score.mean:.4g}" in text
    table.began("generate")
    table.stopped()
    assert "stopped" in drawn(table)


def test_bars_are_told_to_a_watcher_and_drawn_without_one(capsys):
    told = []

    class Watcher:
        def advanced(self, *values):
            told.append(values)

    with watched_by(Watcher()), ProgressBar(total=2, desc="steps", mininterval=0) as bar:
        bar.update(2)
    assert ("steps", 2, 2, "") in told and capsys.readouterr().err == ""
    with ProgressBar(total=2, desc="steps", mininterval=0) as bar:
        bar.update(2)
    assert "steps: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_stages_are_a_table_that_is_drawn_again_on_a_terminal(tmp_path):
    out = tmp_path / "run"
    code, text = on_terminal(["run", "digits-mlp", "--out", out, *sets()], environment={"NO_COLOR": None})
    assert code == 0, text
    # The cursor goes back up, and what was running is done.
    assert len(re.findall(r"\x1b\[1A", text)) > 20
    assert re.search(r"(autoencoder|collect) +(running|\d+%)", text) and re.search(r"autoencoder +done +\d+\.\d", text)
    assert re.search(r"collect +done +\d+\.\d +\d+ checkpoints, accuracy", text)
    assert "gate " in text and "loss on unseen" in text and "Gaussian's" in text
    # Shown again when the program ends, as it was hidden.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "it/s" not in text and "Traceback" not in text

    # A second run has nothing to do.
    code, text = on_terminal(["run", "digits-mlp", "--out", out, *sets()], 80, {"NO_COLOR": None})
    assert code == 0 and re.search(r"collect +done before", text)


@pytest.mark.slow
def test_ctrl_c_leaves_the_cursor_and_says_what_was_stopped(tmp_path):
    arguments = ["run", "digits-mlp", "--out", tmp_path / "run", *sets("autoencoder.steps=1000000")]
    code, text = on_terminal(arguments, environment={"NO_COLOR": None}, until=b"autoencoder, loss")
    assert code not in (0, None)
    assert "stopped" in text and "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.slow
def test_an_error_is_one_line_below_the_table(tmp_path):
    given = sets("autoencoder.min_explained_variance=1")
    code, text = on_terminal(["run", "digits-mlp", "--out", tmp_path / "run", *given], environment={"NO_COLOR": None})
    assert code == 2
    lines = [line for line in text.splitlines() if "Error:" in line]
    assert len(lines) == 1 and "explains" in lines[0] and "Traceback" not in text
    assert text.rindex("stopped") < text.index("Error:")


@pytest.mark.parametrize("name, value", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_plain_lines_where_no_table_can_be_drawn(monkeypatch, name, value):
    from pdiff_hf.cli import live

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "console", Console(force_terminal=True))
    assert live.is_live(as_json=False) and not live.is_live(as_json=True)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(live, "console", Console(force_terminal=True))
    assert not live.is_live(as_json=False)


def test_the_next_commands_of_the_demo_parse():
    commands = next_commands(Path("runs/demo"))
    assert len(commands) == 3
    group = get_command(app)
    for words in commands:
        _, name, *arguments = shlex.split(shlex.join(map(str, words)))
        group.commands[name].make_context(name, arguments)


def test_the_shell_completes_names_of_recipes_without_torch():
    code = (
        "import sys; from pdiff_hf.cli.runs import complete_recipe as c; print(c('digits-s'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['digits-subsets', 'digits-subsets-runs'] False"
