import pytest
from hub_client import ClientError

from pdiff_hf.conditions import CONDITION_FILE, ConditionSpec
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import LAYOUT, make_vectors

REPO = "user/params"
CLASSES = ConditionSpec.named("classes", ["cat", "dog"])


def save(folder, run, subsets, conditions=CLASSES):
    columns = {"run": [run] * len(subsets), **({} if conditions is None else {"condition": subsets})}
    vectors = make_vectors(len(subsets), seed=len(run))
    save_parameter_dataset(vectors, LAYOUT, folder, columns=columns, conditions=conditions)
    return folder


def push(client, folder, function="push_dataset", **options):
    code = f"from pdiff_hf.data.push import {function} as push; result = push(folder, repo, **options)"
    return client(code, folder=folder, repo=REPO, options=options)


READ = """
from pdiff_hf import ParameterDataset
import datasets
dataset = ParameterDataset(repo, config=config)
streamed = ParameterDataset(repo, config=config, streaming=True)
plain = datasets.load_dataset(repo, config or "default", split="train")
result = [
    dataset.condition_spec.to_dict(), dataset.conditions().tolist(), plain["condition"][:],
    [row["condition"].tolist() for row in streamed.rows], streamed.condition_spec.to_dict(),
    dataset.stats["conditions"]["num_conditions"],
]
"""


@pytest.mark.parametrize("config", [None, "tiny"])
def test_conditions_are_pushed_appended_and_read(hub, client, tmp_path, config):
    push(client, save(tmp_path / "a", "a", [["cat"], ["dog"]]), config=config)
    push(client, save(tmp_path / "b", "bb", [["cat", "dog"], ["cat"]]), "append_dataset", config=config)
    numbers = [[1, 0], [0, 1], [1, 1], [1, 0]]
    expected = [CLASSES.to_dict(), numbers, numbers, numbers, CLASSES.to_dict(), 3]
    assert client(READ, repo=REPO, config=config) == expected
    if config is None:
        card = hub.files(REPO, "dataset")["README.md"].decode()
        assert "Conditions are classes (cat, dog); 3 different, 1 to 2 rows of each. Example: `['cat']`" in card


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (None, r"expected conditions as it has them, classes \(cat, dog\); found none; push it as a config"),
        (ConditionSpec.named("classes", ["dog", "cat"]), r"found classes \(dog, cat\)"),
    ],
)
def test_runs_with_other_conditions_are_not_appended(hub, client, tmp_path, conditions, message):
    push(client, save(tmp_path / "a", "a", [["cat"], ["dog"]]))
    before = hub.files(REPO, "dataset")
    with pytest.raises(ClientError, match=message):
        push(client, save(tmp_path / "b", "bb", [["cat"]], conditions), "append_dataset")
    assert hub.files(REPO, "dataset") == before


def test_a_dataset_without_conditions_leaves_no_file_of_them(hub, client, tmp_path):
    push(client, save(tmp_path / "a", "a", [["cat"], ["dog"]]))
    assert CONDITION_FILE in hub.files(REPO, "dataset")
    push(client, save(tmp_path / "b", "a", [["cat"], ["dog"]], None))
    assert CONDITION_FILE not in hub.files(REPO, "dataset")
    with pytest.raises(ClientError, match="expected conditions, found none"):
        client("from pdiff_hf import ParameterDataset; ParameterDataset(repo).conditions()", repo=REPO)


def test_a_dataset_with_another_file_of_conditions_is_not_pushed(hub, client, tmp_path):
    folder = save(tmp_path / "a", "a", [["cat"], ["dog"]])
    ConditionSpec.named("classes", ["dog", "cat"]).save(folder)
    with pytest.raises(ClientError, match=r"condition\.json: expected what stats.json says"):
        push(client, folder)
    assert hub.count("POST", "/commit/") == 0
