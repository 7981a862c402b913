import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Says something in characters that few encodings have, does its work, says the rest.
PROGRAM = """
import os
import sys
from pdiff_hf.terminal import lasting_streams

@lasting_streams()
def main():
    print("400 × 2 → ŝ \\udcff")
    print("−1 …", file=sys.stderr)
    with open("work", "w", encoding="utf-8") as file:
        if sys.stdout.name == os.devnull:
            os.write(1, b"noise of a library in C")
        file.write("done")
    print("and more" * 10_000)
    sys.exit(int(sys.argv[1]))

main()
"""
needs_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def shell(folder, redirection, code=0, **environment):
    """The program's exit code, its output and what it said on stderr; its work is always done."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    source = str(Path(__file__).parents[1] / "src")
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$PYTHON" program.py {code} {redirection}'],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": source, "PYTHON": sys.executable, **environment},
    )
    assert (folder / "work").read_text() == "done"
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("encoding", "printed", "said"),
    [
        ("utf-8", "400 × 2 → ŝ \\udcff", "−1 …"),
        ("utf-16", "400 × 2 → ŝ \\udcff", "−1 …"),
        ("cp1252", "400 × 2 -> \\u015d \\udcff", "-1 …"),
        ("latin-1", "400 × 2 -> \\u015d \\udcff", "-1 ..."),
        ("ascii", "400 x 2 -> \\u015d \\udcff", "-1 ..."),
    ],
)
def test_what_an_encoding_lacks_has_a_stand_in(tmp_path, encoding, printed, said):
    code, out, err = shell(tmp_path, "", PYTHONIOENCODING=encoding)
    assert (code, out.decode(encoding).splitlines()[0], err.decode(encoding).strip()) == (0, printed, said)


def test_locale_without_utf_8(tmp_path):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, _ = shell(tmp_path, "", **environment)
    # Python itself gives bytes of a name back as they were, in this locale only.
    assert code == 0 and out.startswith(b"400 x 2 -> \\u015d ")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("code", [0, 2])
def test_closed_streams(tmp_path, redirection, code):
    assert shell(tmp_path, redirection, code)[0] == code


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_pipe_that_ends_early(tmp_path, unbuffered):
    code, _, err = shell(tmp_path, "| (exec <&-; sleep 0.5)", PYTHONUNBUFFERED=unbuffered)
    assert (code, err.decode().strip()) == (141, "−1 …")


@needs_full_device
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_device_is_told_in_one_line_when_the_work_is_done(tmp_path, unbuffered):
    code, _, err = shell(tmp_path, "> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert code == 1 and len(err.decode().splitlines()) == 2 and b"could not be written: No space left" in err


@needs_full_device
def test_messages_that_nobody_receives_change_nothing(tmp_path):
    assert shell(tmp_path, "2> /dev/full")[0] == 0
    # What has failed anyway says so.
    assert shell(tmp_path, "> /dev/full", code=2)[0] == 2


@pytest.mark.parametrize("redirection", ["", ">&-", "| head -c 1 > /dev/null"])
@pytest.mark.parametrize("command", [["recipes"], ["recipes", "digits-mlp", "--json"], ["--help"], ["info"]])
def test_commands_in_ascii_a_narrow_window_and_without_a_reader(command, redirection):
    line = " ".join(['"$PYTHON" -m pdiff_hf', *command, redirection])
    environment = {"PYTHON": sys.executable, "PYTHONIOENCODING": "ascii", "COLUMNS": "0", "TERM": "dumb"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **environment})
    missing = command == ["info"]
    assert done.returncode == (2 if missing and "|" not in redirection else 0)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert missing == (b"Missing" in done.stderr)
    if redirection == "" and "--json" in command:
        json.loads(done.stdout)


def test_name_that_the_file_system_cannot_encode_is_bad_input(pdiff, monkeypatch):
    import pdiff_hf.runs.folder

    def describe(path):
        str(path).encode("ascii")

    monkeypatch.setattr(pdiff_hf.runs.folder, "describe", describe)
    code, _, err = pdiff("info", "netzé")
    assert code == 2 and "encoding of this system, ascii, cannot name 'netzé'; set PYTHONUTF8=1" in err


def test_every_text_file_is_read_and_written_in_utf_8():
    root, unnamed = Path(__file__).parents[1], []
    for file in sorted(path for room in ("src", "training", "pipelines") for path in (root / room).rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in call.args[:2])
            if name in ("write_text", "read_text", "fdopen") or (
                getattr(call.func, "id", "") == "open" and not binary
            ):
                unnamed.append(f"{file.relative_to(root)}:{call.lineno}")
    assert unnamed == []
