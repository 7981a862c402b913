import json
import math

import numpy as np
import pytest
import torch

from pdiff_hf.conditions import CONDITION_FILE, ConditionSpec

CLASSES = ConditionSpec.named("classes", ["cat", "dog", "ship"])
LABEL = ConditionSpec.named("label", ["wide", "deep"])
METRIC = ConditionSpec.named("metric", ["val_accuracy", "ece"])
TEXT = ConditionSpec("text", 3, encoder="user/encoder")
VECTOR = ConditionSpec("vector", 2)
BOTH = ConditionSpec.composed(CLASSES, METRIC)
CAT = {"classes": ["cat"], "metric": {"val_accuracy": 0.5, "ece": 0.25}}


@pytest.mark.parametrize(
    ("spec", "condition", "values", "described"),
    [
        (CLASSES, ["ship", "cat"], [1, 0, 1], ["cat", "ship"]),
        (CLASSES, [1], [0, 1, 0], ["dog"]),
        (CLASSES, np.array([0, 2]), [1, 0, 1], ["cat", "ship"]),
        (CLASSES, torch.tensor([0.0, 1.0, 1.0]), [0, 1, 1], ["dog", "ship"]),
        (LABEL, "deep", [0, 1], "deep"),
        (LABEL, np.int64(0), [1, 0], "wide"),
        (LABEL, torch.tensor(1), [0, 1], "deep"),
        (METRIC, {"ece": 0.5, "val_accuracy": 0.25}, [0.25, 0.5], {"val_accuracy": 0.25, "ece": 0.5}),
        (TEXT, [1, 2.5, -1], [1, 2.5, -1], [1, 2.5, -1]),
        (VECTOR, torch.tensor([0.5, 3.0], dtype=torch.bfloat16), [0.5, 3], [0.5, 3]),
        (BOTH, CAT, [1, 0, 0, 0.5, 0.25], CAT),
        (BOTH, torch.tensor([1, 0, 0, 0.5, 0.25]), [1, 0, 0, 0.5, 0.25], CAT),
    ],
)
def test_conditions_are_numbers_and_back(spec, condition, values, described):
    assert spec.values(condition) == values and all(type(value) is float for value in spec.values(condition))
    assert spec.describe(values) == described


@pytest.mark.parametrize(
    ("spec", "condition", "message"),
    [
        (CLASSES, [], "one class or more, each once, found \\[\\]"),
        (CLASSES, ["cat", 0], "each once"),
        (CLASSES, ["horse"], "names among cat, dog, ship, or indices below 3, found 'horse'"),
        (CLASSES, [3], "found 3"),
        (CLASSES, [-1], "found -1"),
        (CLASSES, [True], "found True"),
        (CLASSES, "cat", "a list of classes, found 'cat'"),
        (CLASSES, {"cat": 1}, "a list of classes"),
        (CLASSES, 2, "a list of classes"),
        (CLASSES, torch.zeros(3), "ones for what is meant"),
        (CLASSES, torch.tensor([0.5, 0.0, 1.0]), "ones for what is meant"),
        (CLASSES, torch.ones(2), "3 numbers"),
        (LABEL, ["wide"], "names among wide, deep"),
        (LABEL, torch.ones(2), "ones for what is meant"),
        (METRIC, [0.5, 0.5], "a number for each of val_accuracy, ece"),
        (METRIC, {"val_accuracy": 0.5}, "a number for each"),
        (METRIC, {"val_accuracy": 0.5, "ece": math.nan}, "finite numbers"),
        (METRIC, {"val_accuracy": 0.5, "ece": None}, "2 numbers"),
        (TEXT, "a sentence", "3 numbers, found 'a sentence'"),
        (TEXT, [1, 2], "3 numbers"),
        (VECTOR, [1, "2"], "2 numbers"),
        (VECTOR, [1, math.inf], "finite numbers"),
        (VECTOR, [1, 1e39], "that float32 holds"),
        (VECTOR, torch.tensor([1.0, math.nan]), "finite numbers"),
        (VECTOR, 1.0, "2 numbers"),
        (BOTH, ["cat"], "an object of classes and metric"),
        (BOTH, {"classes": ["cat"]}, "an object of classes and metric"),
        (BOTH, torch.zeros(4), "5 numbers"),
    ],
)
def test_what_is_no_condition_is_refused(spec, condition, message):
    with pytest.raises(ValueError, match=f"condition of kind {spec.kind}: expected .*{message}"):
        spec.values(condition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("colour", 1), "kind classes, label, metric, text, vector, composed, found 'colour'"),
        (("classes", 2, ("cat",)), "2 different names"),
        (("label", 2, ("a", "a")), "2 different names"),
        (("vector", 2, ("a", "b")), "0 different names"),
        (("vector", 0), "with 0 numbers"),
        (("vector", 2, (), "user/encoder"), "an encoder of texts alone"),
        (("composed", 3), "two or more parts of a condition, of different kinds among .*found none"),
        (("composed", 6, (), None, (CLASSES, CLASSES)), "different kinds among .*found classes, classes"),
        (("composed", 5, (), None, (VECTOR, TEXT)), "different kinds among classes, label, metric, vector; found"),
        (("composed", 6, (), None, (CLASSES, METRIC)), "the numbers of all parts of a composed condition, found 6"),
        (("vector", 2, (), None, (CLASSES, METRIC)), "the numbers of all parts"),
    ],
)
def test_names_and_size_have_to_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConditionSpec(*arguments)


@pytest.mark.parametrize("spec", [CLASSES, LABEL, METRIC, TEXT, VECTOR, BOTH])
def test_specs_are_written_and_read(spec, tmp_path):
    assert ConditionSpec.read(tmp_path) is None
    spec.save(tmp_path)
    assert ConditionSpec.read(tmp_path) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "expected schema 1"),
        ({"size": "3"}, "size"),
        ({"size": True}, "size"),
        ({"kind": ["classes"]}, "kind"),
        ({"encoding": "one_hot"}, "encoding"),
        ({"names": "abc"}, "expected names"),
        ({"names": [1, 2, 3]}, "expected names"),
        ({"names": ["cat"]}, "3 different names"),
        ({"encoder": 3}, "encoder"),
    ],
)
def test_a_damaged_file_is_named(change, message, tmp_path):
    (tmp_path / CONDITION_FILE).write_text(json.dumps({**CLASSES.to_dict(), **change}))
    with pytest.raises(ValueError, match=f"{CONDITION_FILE}: .*{message}"):
        ConditionSpec.read(tmp_path)


def test_what_is_no_json_is_named(tmp_path):
    (tmp_path / CONDITION_FILE).write_text("[")
    with pytest.raises(ValueError, match=f"^[^:]*{CONDITION_FILE} is not valid JSON"):
        ConditionSpec.read(tmp_path)


def test_a_part_that_is_no_condition_of_its_kind_is_refused():
    with pytest.raises(ValueError, match="condition of kind classes: expected one class or more"):
        BOTH.values({**CAT, "classes": []})
    with pytest.raises(ValueError, match="condition of kind classes: expected ones for what is meant"):
        BOTH.values(torch.tensor([0.5, 0, 0, 0.5, 0.25]))
    with pytest.raises(ValueError, match="condition of kind metric: expected a number for each"):
        BOTH.values({**CAT, "metric": {"ece": 0.5}})


def test_parts_and_their_places_are_found():
    assert BOTH.part("metric") == (METRIC, slice(3, 5)) and BOTH.part("label") is None
    assert CLASSES.part("classes") == (CLASSES, slice(0, 3)) and CLASSES.part("metric") is None
    assert BOTH.summary == "classes (cat, dog, ship) and metric (val_accuracy, ece)"
