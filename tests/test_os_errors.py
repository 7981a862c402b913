import errno
import os

import pytest
from safetensors import SafetensorError

from pdiff_hf.os_errors import as_os_error, describe, exit_code, writing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), errno.EIO),
        (PermissionError(13, "Permission denied"), errno.EACCES),
    ],
)
def test_what_a_library_says_of_a_write_is_an_error_of_the_system_with_the_file(error, code, tmp_path):
    with pytest.raises(OSError) as caught, writing(tmp_path / "file"):
        raise error
    found = caught.value
    assert (found.errno, found.strerror, found.filename) == (code, os.strerror(code), str(tmp_path / "file"))


@pytest.mark.parametrize("error", [ValueError("errno 5"), RuntimeError("a shape"), KeyError("os error 2")])
def test_other_errors_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error and as_os_error(error) is None


def test_a_temporary_name_is_not_shown(tmp_path):
    with pytest.raises(OSError) as caught, writing(tmp_path / "out", tmp_path / ".out.partial"):
        raise OSError(errno.EIO, "x", str(tmp_path / ".out.partial" / "a"), None, str(tmp_path / ".out.partial" / "b"))
    assert str(caught.value) == f"[Errno 5] x: '{tmp_path / 'out' / 'a'}'"


def test_a_copy_without_room_names_its_target():
    error = as_os_error(OSError(errno.ENOSPC, "No space left on device", "from", None, "to"))
    assert describe(error).startswith("to: No space")


@pytest.mark.parametrize(
    ("code", "advice", "exits"),
    [
        (errno.ENOSPC, "make room", 1),
        (errno.EDQUOT, "make room", 1),
        (errno.EIO, "check the disk", 1),
        (errno.EMFILE, "ulimit -n", 1),
        (errno.EACCES, "permissions", 2),
        (errno.EROFS, "can be written to", 2),
        (errno.EXDEV, "on one file system", 2),
        (errno.ENAMETOOLONG, "shorter name", 2),
        (errno.ENOTDIR, "check the path", 2),
        (errno.ELOOP, "check the path", 2),
    ],
)
def test_every_error_says_what_to_do(code, advice, exits):
    error = OSError(code, os.strerror(code), "/some/file")
    assert describe(error).startswith(f"/some/file: {os.strerror(code)}; ") and advice in describe(error)
    assert exit_code(error) == exits


def test_a_name_that_is_too_long_is_cut_and_not_left_out():
    text = describe(OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "/place/" + "x" * 5000))
    assert text.startswith("/place/xxx") and text.endswith("; choose a shorter name.") and len(text) < 1000


def test_a_cache_of_a_library_is_moved_by_its_variable(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/read/only")
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "/read/only/datasets/x")
    assert describe(error).endswith("; set HF_HOME to a folder that can be written to.")


def test_no_usable_folder_for_temporary_files():
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']")
    assert describe(error) == f"{error.strerror}; set TMPDIR to a folder that can be written to."
