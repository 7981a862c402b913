import sys

import pytest

from pdiff_hf.own_code import load_object


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """A current folder of its own, whose modules are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_is_loaded_from_a_file_of_the_current_folder(tmp_path):
    (tmp_path / "own_helpers.py").write_text("FACTOR = 3\n")
    (tmp_path / "own_nets.py").write_text("import own_helpers\n\ndef triple(x):\n    return own_helpers.FACTOR * x\n")

    assert load_object("own_nets.py:triple")(2) == 6
    assert load_object("./own_nets.py:triple") is load_object("own_nets:triple")


def test_a_file_named_as_a_library_is_loaded_beside_it(tmp_path):
    import torch

    (tmp_path / "torch.py").write_text("def answer():\n    return 42\n")

    assert load_object("torch.py:answer")() == 42
    assert load_object("torch.py:answer") is load_object("torch.py:answer")
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("absent.py:f", None, "expected a file at absent.py, found none"),
        ("own_module", None, "expected FILE.py:NAME or package.module:NAME, found 'own_module'"),
        ("no module:f", None, "expected FILE.py:NAME or package.module:NAME"),
        ("absent_module:f", None, "ModuleNotFoundError: No module named 'absent_module'"),
        ("own_a.py:f", "g = 1\n", "own_a.py has nothing called 'f'"),
        ("own_b.py:f", "x = 1\ny = 1 / 0\n", r"ZeroDivisionError: division by zero \(own_b.py, line 2\)"),
        ("own_c.py:f", "def f(:\n", r"SyntaxError: .*own_c.py, line 1"),
        ("own_d:f", "import sys\nsys.exit(3)\n", r"SystemExit: 3 \(own_d.py, line 2\)"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, reference, code, message):
    if code is not None:
        (tmp_path / f"{reference.partition(':')[0].removesuffix('.py')}.py").write_text(code)

    with pytest.raises(ValueError, match=message) as caught:
        load_object(reference)
    assert "\n" not in str(caught.value)
