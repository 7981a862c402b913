import os

import pytest

from pdiff_hf import disk_cache
from pdiff_hf.disk_cache import keep_text, kept_text, texts_kept


def test_text_is_kept_by_its_key_within_the_block_alone():
    keep_text("before", "of no use")
    with texts_kept():
        keep_text("a", "several\nlines")
        assert [kept_text("a"), kept_text("b"), kept_text("before")] == ["several\nlines", None, None]
    assert kept_text("a") is None
    with texts_kept():
        assert kept_text("a") == "several\nlines"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"half", None])
def test_damaged_text_is_none(damage):
    with texts_kept():
        keep_text("a", "whole text")
        file = disk_cache.home_folder() / "a"
        file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
        assert kept_text("a") is None
        keep_text("a", "again")
        assert kept_text("a") == "again"


def test_folder_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(disk_cache, "home_folder", lambda: tmp_path / "file" / "graphs")
    with texts_kept():
        keep_text("a", "text")
        assert kept_text("a") is None


def test_of_many_texts_the_first_go(monkeypatch):
    monkeypatch.setattr(disk_cache, "MAX_FILES", 2)
    with texts_kept():
        for time, key in enumerate("abc"):
            keep_text(key, key)
            os.utime(disk_cache.home_folder() / key, (time, time))
        keep_text("d", "d")
        assert [kept_text(key) for key in "abcd"] == [None, None, "c", "d"]
