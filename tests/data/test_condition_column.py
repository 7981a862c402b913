import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from torch import nn

from pdiff_hf.conditions import CONDITION_FILE, ConditionSpec
from pdiff_hf.data import chunks
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.integrity import find_shards
from pdiff_hf.data.record import ParameterRecorder, finish_recording
from pdiff_hf.data.writer import append_rows, save_parameter_dataset
from pdiff_hf.networks import mlp3
from small_datasets import LAYOUT, NETWORK, D, make_vectors, rewrite, snapshot

CLASSES = ConditionSpec.named("classes", ["cat", "dog", "ship"])
TEXT = ConditionSpec("text", 2, encoder="letters")
SUBSETS = [["cat"], ["dog", "ship"], ["cat"], ["cat", "ship"], ["dog", "ship"], ["cat"]]
NUMBERS = [[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]]


def embed(sentences):
    """Numbers of vowels and of letters."""
    return torch.tensor([[sum(c in "aeiou" for c in s), len(s)] for s in sentences], dtype=torch.float32)


def save(folder, conditions=CLASSES, subsets=SUBSETS, run="a", **options):
    columns = {"run": [run] * len(subsets), "condition": subsets}
    save_parameter_dataset(
        make_vectors(len(subsets)), LAYOUT, folder, columns=columns, conditions=conditions, **options
    )
    return ParameterDataset(folder)


def test_conditions_are_read_as_they_were_written(tmp_path):
    dataset = save(tmp_path / "ds")
    assert dataset.condition_spec == CLASSES and dataset.condition_texts is None
    assert torch.equal(dataset.conditions(), torch.tensor(NUMBERS, dtype=torch.float32))
    assert dataset.conditions([1, 3]).tolist() == [NUMBERS[1], NUMBERS[3]]
    assert dataset.conditions(slice(2)).tolist() == NUMBERS[:2]
    assert torch.equal(dataset.rows[1]["condition"], torch.tensor([0.0, 1.0, 1.0])) and dataset.metrics == {}
    assert dataset.stats["conditions"] == {
        "spec": CLASSES.to_dict(),
        "num_conditions": 3,
        "rows_per_condition": {"min": 1, "max": 3},
        "example": ["cat"],
    }
    streamed = ParameterDataset(tmp_path / "ds", streaming=True)
    assert [row["condition"].tolist() for row in streamed.rows] == NUMBERS
    plain = load_dataset(str(tmp_path / "ds"), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["condition"][:] == NUMBERS


@pytest.mark.parametrize("given", [torch.tensor(NUMBERS, dtype=torch.float32), np.array(NUMBERS, dtype=np.float64)])
def test_conditions_may_be_given_as_their_numbers(given, tmp_path):
    assert save(tmp_path / "ds", subsets=given).conditions().tolist() == NUMBERS


def test_a_dataset_without_conditions_has_none(tmp_path):
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.condition_spec is None and not (tmp_path / "ds" / CONDITION_FILE).exists()
    with pytest.raises(ValueError, match="ds: expected conditions, found none"):
        dataset.conditions()


@pytest.mark.parametrize(
    ("conditions", "subsets", "message"),
    [
        (None, SUBSETS, "column 'condition': expected it with what conditions are"),
        (CLASSES, [["cat"], None], "checkpoint of row 1: expected a condition, classes"),
        (CLASSES, [["cat"], []], "checkpoint of row 1: condition of kind classes: expected one class or more"),
        (CLASSES, [["cat"], ["horse"]], "checkpoint of row 1: .* found 'horse'"),
        (CLASSES, torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "checkpoint of row 1: .*expected ones for what is meant"),
        (CLASSES, torch.tensor([[1.0, 0, torch.nan]]), "checkpoint of row 0: .*expected finite numbers"),
        (CLASSES, torch.ones(2, 2), "expected conditions of 3 numbers, classes .*, found 2"),
        (ConditionSpec.named("label", ["a", "b"]), torch.ones(1, 2), "ones for what is meant"),
        (TEXT, ["a sentence"], r"expected the encoder of the sentences"),
        (TEXT, torch.ones(2, 2), "expected the sentence of every condition in 'condition_text'"),
    ],
)
def test_what_is_no_condition_is_refused_and_nothing_is_written(conditions, subsets, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "ds", conditions, subsets)
    assert not (tmp_path / "ds").exists()


def test_every_row_has_a_condition(tmp_path):
    with pytest.raises(ValueError, match="checkpoint of row 0: expected a condition, classes"):
        save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", conditions=CLASSES)
    with pytest.raises(ValueError, match="column 'condition': expected 6 values, found 2"):
        columns = {"condition": [["cat"], ["dog"]]}
        save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds", columns=columns, conditions=CLASSES)


def test_sentences_and_their_embeddings_are_stored(tmp_path):
    sentences = ["a cat", "a dog", "a cat"]
    dataset = save(tmp_path / "ds", TEXT, sentences, embed=embed)
    assert dataset.condition_texts == sentences and dataset.conditions().tolist() == [[2, 5], [2, 5], [2, 5]]
    assert dataset.condition_spec.encoder == "letters" and dataset.stats["conditions"]["example"] == "a cat"
    columns = {"run": ["b"], "condition": embed(["an owl"]), "condition_text": ["an owl"]}
    dataset.append(make_vectors(1, 1), columns)
    dataset.append(make_vectors(1, 2), {"run": ["c"], "condition": ["a seal"]}, embed=embed)
    assert dataset.condition_texts == [*sentences, "an owl", "a seal"]
    with pytest.raises(ValueError, match="expected sentences for conditions of kind text alone"):
        columns = {"condition": SUBSETS, "condition_text": ["x"] * 6}
        save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "other", columns=columns, conditions=CLASSES)


def test_rows_are_appended_with_conditions_of_the_same_kind(tmp_path):
    dataset = save(tmp_path / "ds")
    dataset.append(make_vectors(2, 1), {"run": ["b"] * 2, "condition": [["ship"], ["cat", "dog"]]})
    assert dataset.conditions(slice(6, 8)).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert dataset.stats["conditions"]["num_conditions"] == 5


@pytest.mark.parametrize(
    ("conditions", "columns", "message"),
    [
        (None, {}, r"expected conditions as it has them, classes \(cat, dog, ship\); found none; choose another"),
        (ConditionSpec("vector", 3), {"condition": torch.ones(1, 3)}, r"found vector \(3 numbers\)"),
        (
            ConditionSpec.named("classes", ["dog", "cat", "ship"]),
            {"condition": [[0]]},
            "found classes .dog, cat, ship",
        ),
        (CLASSES, {}, "checkpoint of (row|step) 0: expected a condition, classes"),
        (CLASSES, {"condition": [["horse"]]}, "found 'horse'"),
    ],
)
@pytest.mark.parametrize("how", ["append", "record"])
def test_rows_with_other_conditions_are_not_appended(how, conditions, columns, message, tmp_path):
    save(tmp_path / "ds")
    before = snapshot(tmp_path / "ds")
    with pytest.raises(ValueError, match=message):
        if how == "append":
            named = {"run": ["b"], **columns}
            append_rows(make_vectors(1), LAYOUT, tmp_path / "ds", columns=named, conditions=conditions)
        else:
            with ParameterRecorder(LAYOUT, tmp_path / "ds", run="b", conditions=conditions) as recorder:
                given = {name: value[0] for name, value in columns.items()}
                recorder.record(make_vectors(1)[0], step=0, **given)
    assert snapshot(tmp_path / "ds") == before


def test_conditions_do_not_come_to_rows_without(tmp_path):
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    before = snapshot(tmp_path / "ds")
    with pytest.raises(ValueError, match="expected conditions as it has them, none; found classes"):
        ParameterRecorder(LAYOUT, tmp_path / "ds", run="b", conditions=CLASSES)
    with pytest.raises(ValueError, match="column 'condition': expected it with what conditions are"):
        ParameterDataset(tmp_path / "ds").append(make_vectors(1), {"run": ["b"], "condition": [["cat"]]})
    assert snapshot(tmp_path / "ds") == before


def test_a_recorder_writes_conditions(tmp_path):
    vectors = make_vectors(3)
    with ParameterRecorder(LAYOUT, tmp_path / "ds", conditions=CLASSES) as recorder:
        for step, subset in enumerate([["cat"], [1, 2], torch.tensor([0.0, 0.0, 1.0])]):
            recorder.record(vectors[step], step=step, loss=0.5, condition=subset)
        with pytest.warns(UserWarning, match="was not closed"):
            assert ParameterDataset(tmp_path / "ds").conditions().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
        for condition, message in (
            (["horse"], "step 3: .*found 'horse'"),
            (None, "step 3: expected a condition"),
        ):
            with pytest.raises(ValueError, match=message):
                recorder.record(vectors[0], step=3, loss=0.5, condition=condition)
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.conditions().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]] and [*dataset.metrics] == ["train_loss"]


def test_a_recorder_embeds_sentences(tmp_path):
    with ParameterRecorder(LAYOUT, tmp_path / "ds", conditions=TEXT, embed=embed) as recorder:
        recorder.record(make_vectors(1)[0], step=0, condition="a cat")
        recorder.record(make_vectors(1)[0], step=1, condition=[2, 5], condition_text="a dog")
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.condition_texts == ["a cat", "a dog"] and dataset.conditions().tolist() == [[2, 5], [2, 5]]


def test_a_recorder_without_conditions_takes_none(tmp_path):
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds")
    with pytest.raises(ValueError, match="column 'condition': expected it with what conditions are"):
        recorder.record(make_vectors(1)[0], step=0, condition=["cat"])


def test_a_recording_is_resumed_and_finished_with_its_conditions(tmp_path):
    vectors = make_vectors(4)
    with ParameterRecorder(LAYOUT, tmp_path / "ds", conditions=CLASSES) as recorder:
        for step in range(3):
            recorder.record(vectors[step], step=step, condition=[step])
    with pytest.raises(ValueError, match="expected conditions as it has them"):
        ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=1)
    recorder = ParameterRecorder(LAYOUT, tmp_path / "ds", resume_from=1, conditions=CLASSES)
    recorder.record(vectors[3], step=2, condition=["cat"])
    # As after a crash.
    recorder._file.close()
    recorder._held.release()
    finish_recording(tmp_path / "ds")
    assert ParameterDataset(tmp_path / "ds").conditions().tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_first_rows_keep_their_conditions(tmp_path):
    first = save(tmp_path / "ds").copy_first(2, tmp_path / "first")
    assert first.condition_spec == CLASSES and first.conditions().tolist() == NUMBERS[:2]


def test_chunk_rows_have_conditions(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_VALUES", D // 3)
    dataset = save(tmp_path / "ds")
    assert dataset.conditions().tolist() == NUMBERS and torch.equal(dataset.vectors(), make_vectors())
    assert [row["condition"].tolist() for row in dataset.rows] == NUMBERS


def test_another_condition_file_is_noticed(tmp_path):
    save(tmp_path / "ds")
    ConditionSpec.named("classes", ["dog", "cat", "ship"]).save(tmp_path / "ds")
    with pytest.raises(
        ValueError, match=r"condition.json: expected what stats.json says .*cat, dog.*found .*dog, cat"
    ):
        ParameterDataset(tmp_path / "ds").conditions()
    (tmp_path / "ds" / CONDITION_FILE).unlink()
    with pytest.raises(ValueError, match=r"condition.json: expected what stats.json says .*, found none; restore it"):
        ParameterDataset(tmp_path / "ds").condition_spec  # noqa: B018
    before = snapshot(tmp_path / "ds")
    with pytest.raises(ValueError, match=r"condition\.json: expected what stats.json says"):
        columns = {"run": ["b"], "condition": [["cat"]]}
        append_rows(make_vectors(1), LAYOUT, tmp_path / "ds", columns=columns, conditions=CLASSES)
    assert snapshot(tmp_path / "ds") == before


def test_a_column_of_another_size_is_noticed(tmp_path):
    save(tmp_path / "ds")
    stats = json.loads((tmp_path / "ds" / "stats.json").read_text())
    del stats["conditions"]
    (tmp_path / "ds" / "stats.json").write_text(json.dumps(stats))
    ConditionSpec.named("classes", ["cat", "dog"]).save(tmp_path / "ds")
    with pytest.raises(ValueError, match=r"expected conditions of 2 numbers, as condition\.json says, found 3"):
        ParameterDataset(tmp_path / "ds").conditions()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(NUMBERS, pa.list_(pa.float32())), r"expected 'condition' of as many float32 values in every row"),
        (pa.array(NUMBERS, pa.list_(pa.float64(), 3)), r"expected 'condition' of as many float32 values in every row"),
        (pa.array([*NUMBERS[:5], None], pa.list_(pa.float32(), 3)), "expected 'condition' in every row, found rows"),
        (pa.array([*NUMBERS[:5], [0, 0, 0]], pa.list_(pa.float32(), 3)), "row 5: .* expected ones for what is meant"),
    ],
)
def test_columns_that_others_have_written_are_checked(column, message, tmp_path):
    save(tmp_path / "ds")
    (file,) = find_shards(tmp_path / "ds")
    table = pq.read_table(file)
    rewrite(table.set_column(table.column_names.index("condition"), "condition", column), file)
    with pytest.raises(ValueError, match=message):
        ParameterDataset(tmp_path / "ds").conditions()
    if column.null_count:
        with pytest.raises(ValueError, match=message):
            ParameterDataset(tmp_path / "ds").vectors()


def test_a_stale_file_of_conditions_goes(tmp_path):
    (tmp_path / "ds").mkdir()
    CLASSES.save(tmp_path / "ds")
    save_parameter_dataset(make_vectors(), LAYOUT, tmp_path / "ds")
    assert ParameterDataset(tmp_path / "ds").condition_spec is None


def test_networks_are_recorded_with_conditions(tmp_path):
    network = mlp3(**NETWORK)
    assert isinstance(network, nn.Module)
    with ParameterRecorder(LAYOUT, tmp_path / "ds", conditions=ConditionSpec.named("metric", ["ece"])) as recorder:
        recorder.record(network, step=0, condition={"ece": torch.tensor(0.25).item()})
    dataset = ParameterDataset(tmp_path / "ds")
    assert dataset.condition_spec.describe(dataset.conditions()[0]) == {"ece": 0.25}


METRIC = ConditionSpec.named("metric", ["val_accuracy"])
COMPOSED = ConditionSpec.composed(CLASSES, METRIC)


def test_conditions_of_several_parts_are_one_column(tmp_path):
    told = [{"classes": subset, "metric": {"val_accuracy": row / 8}} for row, subset in enumerate(SUBSETS)]
    dataset = save(tmp_path / "ds", COMPOSED, told)
    values = torch.tensor([[*own, row / 8] for row, own in enumerate(NUMBERS)])
    assert dataset.condition_spec == COMPOSED and torch.equal(dataset.conditions(), values)
    assert json.loads((tmp_path / "ds" / CONDITION_FILE).read_text())["parts"] == [CLASSES.to_dict(), METRIC.to_dict()]
    assert dataset.stats["conditions"]["example"] == told[0] and dataset.stats["conditions"]["num_conditions"] == 6
    dataset.append(make_vectors(1), {"run": ["b"], "condition": [told[2]]})
    assert torch.equal(ParameterDataset(tmp_path / "ds").conditions()[-1], values[2])
    with pytest.raises(ValueError, match="one class or more"):
        dataset.append(make_vectors(1), {"run": ["c"], "condition": [{**told[0], "classes": []}]})
    bad = torch.tensor([[0.5, 0, 0, 0.5]])
    with pytest.raises(ValueError, match="ones for what is meant"):
        dataset.append(make_vectors(1), {"run": ["c"], "condition": bad})


def test_parts_of_others_do_not_stand_beside_them(tmp_path):
    save(tmp_path / "ds", COMPOSED, [{"classes": ["cat"], "metric": {"val_accuracy": 0.5}}])
    other = ConditionSpec.composed(CLASSES, ConditionSpec.named("metric", ["ece"]))
    columns = {"run": ["b"], "condition": [{"classes": ["cat"], "metric": {"ece": 0.5}}]}
    with pytest.raises(ValueError, match=r"metric \(val_accuracy\); found .*metric \(ece\)"):
        append_rows(make_vectors(1), LAYOUT, tmp_path / "ds", columns=columns, conditions=other)
