import json

import pytest
import torch
from test_import import BASE, make_folder, run_import

from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.importing.conditions import find_spec
from pdiff_hf.data.importing.importer import import_checkpoints
from small_datasets import NETWORK
from small_encoders import save_encoder

CLASSES = "classes (cat, dog, ship)"


@pytest.fixture
def nets(tmp_path):
    return make_folder(tmp_path / "nets")


def write(folder, name, content):
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("name", "content", "note", "numbers"),
    [
        (
            "c.csv",
            "file,classes\nepoch_1.safetensors,cat;dog\nepoch_2,ship\nnets/epoch_10,dog\n",
            f"Conditions, as the file says: {CLASSES}.",
            [[1, 1, 0], [0, 0, 1], [0, 1, 0]],
        ),
        (
            "c.csv",
            "file,label\nepoch_1,wide\nepoch_2,a deep one\nepoch_10,wide\n",
            "Conditions, as the file says: label (a deep one, wide).",
            [[0, 1], [1, 0], [0, 1]],
        ),
        (
            "c.csv",
            "file,val_accuracy,ece\nepoch_1,0.5,0.25\nepoch_2,1,0\nepoch_10,0.75,0.5\n",
            "Conditions, as the file says: metric (val_accuracy, ece).",
            [[0.5, 0.25], [1, 0], [0.75, 0.5]],
        ),
        (
            "c.json",
            {"epoch_1": ["dog", "cat"], "epoch_2": ["ship"], "epoch_10": ["dog"]},
            f"Conditions, as they look: {CLASSES}.",
            [[1, 1, 0], [0, 0, 1], [0, 1, 0]],
        ),
        (
            "c.json",
            {
                "epoch_1": {"classes": ["dog", "cat"], "metric": {"ece": 0.5}},
                "epoch_2": {"classes": ["ship"], "metric": {"ece": 0.25}},
                "epoch_10": {"metric": {"ece": 1}, "classes": ["dog"]},
            },
            f"Conditions, as they look: {CLASSES} and metric (ece).",
            [[1, 1, 0, 0.5], [0, 0, 1, 0.25], [0, 1, 0, 1]],
        ),
        (
            "c.json",
            {"kind": "classes", "names": ["ship", "dog", "cat"], "conditions": {"nets": ["cat"]}},
            "Conditions, as the file says: classes (ship, dog, cat).",
            [[0, 0, 1]] * 3,
        ),
        (
            "c.json",
            {"epoch_1": [0, 2], "epoch_2": [1], "epoch_10": [2]},
            "Conditions, as they look: classes (0, 1, 2).",
            [[1, 0, 1], [0, 1, 0], [0, 0, 1]],
        ),
        ("c.json", {"nets": "wide"}, "Conditions, as they look: label (wide).", [[1]] * 3),
        ("c.json", {"nets": {"ece": 0.5}}, "Conditions, as they look: metric (ece).", [[0.5]] * 3),
        ("c.json", {"nets": [0.5, 2]}, "Conditions, as they look: vector (2 numbers).", [[0.5, 2]] * 3),
    ],
)
def test_conditions_come_from_a_file(nets, tmp_path, name, content, note, numbers):
    summary = run_import(nets, tmp_path / "ds", conditions=write(tmp_path, name, content))
    assert summary["notes"] == [note]
    assert ParameterDataset(tmp_path / "ds").conditions().tolist() == numbers


def test_a_folder_is_a_task(tmp_path):
    for name in ("cat", "dog"):
        make_folder(tmp_path / "nets" / name, names=("a", "b"))
    conditions = write(tmp_path, "c.json", {"cat": ["cat"], "dog": ["dog"]})
    run_import(tmp_path / "nets", tmp_path / "ds", conditions=conditions)
    assert ParameterDataset(tmp_path / "ds").conditions().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.json",
            {"epoch_1": ["cat"], "epoch_2": ["cat"]},
            r"epoch_10\.safetensors: expected one condition .*found none",
        ),
        ("c.json", {"nets": ["cat"], "epoch_2": ["dog"]}, r"epoch_2\.\w+: .*found several, of 'epoch_2', 'nets'"),
        ("c.json", {"nets": ["cat"], "epoch_3": ["dog"]}, "found one of 'epoch_3', which is none"),
        ("c.json", {"nets": []}, "expected conditions of one kind"),
        ("c.json", {"nets": 0.5}, "expected conditions of one kind"),
        ("c.json", {"epoch_1": ["cat"], "epoch_2": "dog", "epoch_10": ["cat"]}, "expected conditions of one kind"),
        ("c.json", {"kind": "classes", "names": ["dog"], "conditions": {"nets": ["cat"]}}, "epoch_1.*found 'cat'"),
        ("c.json", {"kind": "colour", "names": ["dog"], "conditions": {"nets": ["cat"]}}, "kind classes, label"),
        ("c.json", {"kind": "classes", "names": "dog", "conditions": {"nets": ["cat"]}}, "expected a list of names"),
        ("c.json", {"sort": "classes", "conditions": {}}, "expected 'conditions', 'kind' and 'names', found 'sort'"),
        ("c.json", {"kind": "metric", "conditions": {"nets": 0.5}}, "numbers by the names of metrics, found 0.5"),
        ("c.json", {"kind": "text", "conditions": {"nets": "a cat"}}, "encoder of conditions that are sentences"),
        ("c.json", "[", "is not valid JSON"),
        ("c.csv", "", "expected a column of names"),
        ("c.csv", "file,classes,label\nnets,cat,wide\n", "expected a column of names and one of classes, label, text"),
        ("c.csv", "file,classes\nnets,\n", r"expected \['classes'\] of 'nets'"),
        ("c.csv", "file,kind\nnets,cat\n", "c.csv: 'nets': expected a number, or a column that is called classes"),
        ("c.csv", "file,label\nnets,a\nnets,b\n", "'nets' twice"),
        ("c.csv", "file,ece\nnets,nan\n", "finite numbers"),
    ],
)
def test_one_line_says_what_is_wrong_and_nothing_is_left(nets, tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        run_import(nets, tmp_path / "ds", conditions=write(tmp_path, name, content))
    assert not (tmp_path / "ds").exists()


def test_conditions_of_a_program_of_ones_own(nets, tmp_path):
    spec = ConditionSpec("text", 1, encoder="length")
    sentences = {"epoch_1": "a cat", "epoch_2": "two dogs", "epoch_10": "a cat"}
    given = {
        "conditions": sentences,
        "condition_spec": spec,
        "embed": lambda texts: torch.tensor([[1.0 * len(texts[0])]]),
    }
    summary = run_import(nets, tmp_path / "ds", **given)
    dataset = ParameterDataset(tmp_path / "ds")
    assert summary["notes"] == ["Conditions, as they were given: text (1 number of length)."]
    assert dataset.condition_texts == [*sentences.values()] and dataset.conditions()[:, 0].tolist() == [5, 8, 5]
    with pytest.raises(ValueError, match=r"conditions: .*expected one condition"):
        import_checkpoints(nets, tmp_path / "other", base_model=BASE, progress=False, conditions={"epoch_1": "a cat"})


def test_the_command_embeds_sentences(pdiff, nets, tmp_path):
    file = write(tmp_path, "c.csv", "file,text\nepoch_1,a cat\nepoch_2,two dogs\nepoch_10,a cat\n")
    base = ["--base", "import:pdiff_hf.networks:mlp3", "--kwargs", json.dumps(NETWORK)]
    command = ["import", nets, "--out", tmp_path / "ds", *base, "--conditions", file]
    code, _, error = pdiff(*command)
    assert code == 2 and "give --encoder NAME" in error and error.count("\n") == 1
    code, _, error = pdiff(*command, "--encoder", tmp_path / "none")
    assert code == 2 and "expected a text encoder" in error and error.count("\n") == 1
    assert not (tmp_path / "ds").exists()
    code, output, error = pdiff(*command, "--encoder", save_encoder(tmp_path / "encoder"))
    assert code == 0, error
    assert "Conditions, as the file says: text (8 numbers of" in " ".join(output.split())
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.condition_texts == ["a cat", "two dogs", "a cat"] and dataset.conditions().shape == (3, 8)
    code, _, error = pdiff("import", nets, "--out", tmp_path / "x", "--conditions", tmp_path / "none.csv")
    assert code == 2 and "expected a file of conditions" in error
    code, _, error = pdiff("import", nets, "--out", tmp_path / "x", "--encoder", "none")
    assert code == 2 and "--encoder is for --conditions" in error


def test_numbers_of_classes_are_bounded():
    spec = find_spec([[10**12]])
    assert spec.size == 2**16 + 1
    with pytest.raises(ValueError, match="indices below"):
        spec.values([10**12])
