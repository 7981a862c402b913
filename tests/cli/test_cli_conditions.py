import json

import pytest

from pdiff_hf.conditions import CONDITION_FILE, ConditionSpec
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import LAYOUT, make_vectors

CLASSES = ConditionSpec.named("classes", ["cat", "dog"])
SUBSETS = [["cat"], ["dog"], ["cat"], ["cat", "dog"], ["cat"], ["dog"]]
TOLD = "classes (cat, dog); 3 different, 1 to 3 rows of each"


@pytest.fixture
def folder(tmp_path):
    columns = {"condition": SUBSETS}
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns, conditions=CLASSES)
    return tmp_path / "ds"


def test_inspect_shows_conditions(pdiff, folder):
    code, output, error = pdiff("inspect", folder)
    assert code == 0, error
    assert TOLD in " ".join(output.split())
    _, output, _ = pdiff("inspect", folder, "--json")
    assert json.loads(output)["conditions"] == {
        "spec": CLASSES.to_dict(),
        "num_conditions": 3,
        "rows_per_condition": {"min": 1, "max": 3},
        "example": ["cat"],
    }


def test_info_shows_conditions(pdiff, folder, tmp_path):
    _, output, _ = pdiff("info", folder, "--json")
    assert json.loads(output)["conditions"] == TOLD
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "plain")
    _, output, _ = pdiff("info", tmp_path / "plain", "--json")
    assert json.loads(output)["conditions"] is None


def test_a_damaged_file_is_one_line(pdiff, folder):
    (folder / CONDITION_FILE).write_text("{}")
    code, _, error = pdiff("inspect", folder)
    assert code == 2 and f"{CONDITION_FILE}: expected schema 1" in " ".join(error.split()) and "Traceback" not in error
