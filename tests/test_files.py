import hashlib

import pytest

from pdiff_hf.files import atomic_write, read_json, sha256_file, write_json


def test_atomic_write_creates_parents_and_leaves_one_file(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_write_that_fails_keeps_what_was_there(tmp_path):
    target = tmp_path / "b.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None, "ü"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, "ü"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_json_is_refused_and_keeps_the_file(tmp_path, value):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match=r"x\.json: expected finite numbers"):
        write_json(tmp_path / "x.json", {"loss": value})
    assert read_json(tmp_path / "x.json") == 1


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"], ids=["missing", "malformed", "binary"])
def test_unreadable_json_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_sha256_file_is_the_hash_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_key_that_json_has_twice_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON: key 'c' is there twice"):
        read_json(tmp_path / "x.json")
