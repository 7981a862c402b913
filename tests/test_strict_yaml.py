import os

import pytest

from pdiff_hf.strict_yaml import parse_yaml, read_mapping

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"key 'a' is there in line 1 and in line 3"),
        ("b:\n  x: 1\n  y: 1\n  'x': 2\n", r"key 'x' is there in line 2 and in line 4"),
        ("b:\n- c: {k: 1,\n   k: 2}\n", r"key 'k' is there in line 2 and in line 3"),
        ("on: 1\ntrue: 2\n", r"key 'true' is there in line 1 and in line 2"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", r"key '<<' is there in line 3 and in line 4"),
        ("a:\n\tb: 1\n", r"line 2: .*'\\t' that cannot start any token"),
        ("a: !!python/object/apply:os.system [ls]\n", r"line 1: could not determine a constructor for the tag"),
        ("a: &a [*a]\n", r"line 1 is a part of itself"),
        (LAUGHS, r"expected at most 100000 values, found more by aliases"),
        ("[" * 5000, r"recursion"),
        ("a: 1\n---\nb: 1\n", r"expected a single document"),
        ("a: 2026-99-99\n", r"month must be in 1\.\.12"),
        ("{[1]: 2}", r"found unhashable key"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text, "own.yaml")
    assert str(caught.value).startswith("own.yaml is not valid YAML: ") and "\n" not in str(caught.value)


def test_a_merged_key_gives_way_to_an_own_one():
    assert parse_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\n", "own.yaml")["b"] == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "expected sections .*found an empty file"),
        (b"- 1", r"expected sections .*found \[1\]"),
        ("a: 1".encode("utf-16"), "expected UTF-8"),
    ],
    ids=["missing", "empty", "list", "utf-16"],
)
def test_a_file_that_holds_no_sections_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"own\.yaml.*{message}"):
        read_mapping(tmp_path / "own.yaml")


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_mapping(tmp_path / "own.yaml") == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_said_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"expected a YAML file at .*recipe\.yaml, found a named pipe"):
        read_mapping(tmp_path / "recipe.yaml")
