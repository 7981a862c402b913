import errno
import json
import os
import threading

import pytest

from pdiff_hf import locks
from pdiff_hf.files import atomic_folder
from pdiff_hf.locks import FolderLock, lock_file, locked
from processes import held_elsewhere


def test_the_second_program_is_told_who_holds_the_folder_and_a_dead_one_holds_nothing(tmp_path):
    with (
        held_elsewhere(tmp_path / "out") as pid,
        pytest.raises(ValueError, match=rf"out is being written to by `.+` \(process {pid} on .+, since 2"),
    ):
        FolderLock(tmp_path / "out")
    assert lock_file(tmp_path / "out").exists()
    FolderLock(tmp_path / "out").release()
    # The dead one had made the folder.
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_leaves_nothing_behind_and_keeps_what_was_written(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert lock_file(tmp_path / "a" / "b").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_the_same_thread_may_enter_again_and_another_thread_may_not(tmp_path):
    found = []

    def enter():
        try:
            with locked(tmp_path):
                found.append("entered")
        except ValueError as error:
            found.append(str(error))

    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path), locked(tmp_path / "link"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(found) == 1 and f"process {os.getpid()} on" in found[0]
    with locked(tmp_path):
        pass


def test_a_file_that_a_holder_takes_away_is_not_locked_by_two(tmp_path, monkeypatch):
    first, opened = FolderLock(tmp_path), os.open

    def open_late(path, *arguments):
        # The holder lets go between the opening of the file and the lock.
        descriptor = opened(path, *arguments)
        monkeypatch.setattr(os, "open", opened)
        first.release()
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    second = FolderLock(tmp_path)
    assert second.file.exists()
    with pytest.raises(ValueError, match="is being written to by"):
        FolderLock(tmp_path)
    second.release()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)


def test_without_locks_the_file_says_who_writes(tmp_path, no_flock):
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=r"is being written to by .*if that is gone, delete .*\.lock"):
        FolderLock(tmp_path)
    lock.release()
    with held_elsewhere(tmp_path / "other") as gone:
        pass
    holder = json.dumps({"pid": gone, "host": locks.socket.gethostname(), "since": "today", "command": "x"})
    lock_file(tmp_path).write_text(holder)
    FolderLock(tmp_path).release()
    # Whether a process of another machine is alive cannot be seen.
    lock_file(tmp_path).write_text(holder.replace(locks.socket.gethostname(), "elsewhere"))
    with pytest.raises(ValueError, match=r"on elsewhere, since today"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": 1}', b'{"pid": "x"}'])
def test_a_lock_file_with_anything_in_it_does_not_stand_in_the_way(tmp_path, content):
    lock_file(tmp_path).write_bytes(content)
    lock = FolderLock(tmp_path)
    lock_file(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match="is being written to by"):
        FolderLock(tmp_path)
    lock.release()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"expected a folder, .*out is a file"):
        FolderLock(tmp_path / "out")


def test_two_atomic_folders_of_one_name_do_not_share_their_parts(tmp_path):
    found = []

    def write():
        try:
            with atomic_folder(tmp_path / "out") as partial:
                (partial / "theirs").touch()
        except ValueError as error:
            found.append(str(error))

    with atomic_folder(tmp_path / "out") as partial:
        (partial / "own").touch()
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert "out is being written to by" in found[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["own"]
