import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard
from huggingface_hub.repocard import metadata_load

from artefacts import METADATA, check_golden, save_dataset
from factories import make_network, make_vectors
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.card import size_category, write_dataset_card
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.writer import save_parameter_dataset
from pdiff_hf.hub.card_text import REPO_ID


def render(folder):
    (folder / "README.md").unlink(missing_ok=True)
    return write_dataset_card(folder).read_text(encoding="utf-8")


def test_dataset_has_the_golden_card(tmp_path):
    check_golden("dataset_card.md", render(save_dataset(tmp_path)))


def test_metadata_are_valid_and_plain_datasets_loads_by_them(tmp_path):
    folder = save_dataset(tmp_path)
    render(folder)
    data = DatasetCard.load(folder / "README.md").data
    assert data.size_categories == ["n<1K"]
    assert metadata_load(folder / "README.md")["configs"][0]["config_name"] == "default"
    dataset = datasets.load_dataset(str(folder), split="train").with_format("torch")
    assert torch.equal(dataset["parameters"][:], make_vectors())


def test_snippets_run(tmp_path):
    folder = save_dataset(tmp_path)
    blocks = [part.partition("```")[0] for part in render(folder).split("```python\n")[1:]]
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        download = f'snapshot_download("{REPO_ID}", repo_type="dataset")'
        exec(block.replace(download, f'"{folder}"').replace(REPO_ID, str(folder)), names)
        assert len(names["dataset"]) == 24
    reference = make_network()
    names["layout"].load_into(reference, make_vectors()[0])
    images = torch.ones(1, 1, 2, 2)
    assert torch.equal(names["model"](images), reference.eval()(images))


def test_paths_of_a_machine_are_not_shown(tmp_path):
    text = render(save_dataset(tmp_path))
    assert "somebody" not in text and "Data: `images`" in text and str(tmp_path) not in text


def test_imported_rows_say_where_they_come_from(tmp_path):
    rows = [{"source": f"nets/{row}|<b>.pth", "revision": None} for row in range(3)]
    rows += [{"source": "user/name", "revision": "0123456789" * 4}] * 300
    text = render(save_dataset(tmp_path, {"import": {"select": "all", "rows": rows}}))
    assert "- 303 checkpoints that were there before were imported" in text
    assert "| 0 | nets/0\\|&lt;b&gt;.pth |  |" in text and f"| 3 | `user/name` | `{'0123456789' * 4}` |" in text
    assert "103 more are in `stats.json`" in text and "| 200 |" not in text


@pytest.mark.parametrize("metadata", [{}, {"task": "mine", "collect": [1], "import": None}, {"task": {"dataset": 3}}])
def test_card_of_less_than_everything(tmp_path, metadata):
    text = render(save_dataset(tmp_path, metadata, base_model=False))
    assert "carries no base model" in text and "None" not in text
    assert ("Nothing was recorded about it." in text) == (not metadata) or "All settings" in text


def test_names_of_others_are_shown_as_text(tmp_path):
    folder = save_dataset(tmp_path, {"task": {**METADATA["task"], "dataset": "x`|<i>\n# y"}}, run="a|`<u>\n- b")
    layout = json.loads((folder / "layout.json").read_text())
    layout["tensors"][0]["name"] = "w|\n<!-- pdiff:end layout -->"
    (folder / "layout.json").write_text(json.dumps(layout))
    text = render(folder)
    assert "<i>" not in text and "<u>" not in text and text.count("pdiff:end layout --&gt;") == 2
    assert "| w\\| &lt;!-- pdiff:end layout --&gt; | 4×4 |" in text
    write_dataset_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == text


def test_vectors_in_chunks_are_told(tmp_path):
    folder = save_dataset(tmp_path)
    columns = {"run": ["run-0"] * 2, "chunk": [0, 1], "values": [[0.0, 1.0], [2.0]]}
    pq.write_table(pa.table(columns), folder / "data" / "train-00000.parquet")
    text = render(folder)
    assert "in several rows each" in text and "| `chunk` | int64 | position of the values" in text


def test_missing_files_are_named(tmp_path):
    folder = save_dataset(tmp_path)
    (folder / "stats.json").unlink()
    with pytest.raises(ValueError, match=r"expected a JSON file at .*stats\.json"):
        write_dataset_card(folder)


@pytest.mark.parametrize(
    ("rows", "name"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M")]
)
def test_size_categories_are_those_of_the_hub(rows, name):
    assert size_category(rows) == name


def test_conditions_are_told(tmp_path):
    folder = save_dataset(tmp_path)
    dataset = ParameterDataset(folder)
    spec = ConditionSpec("text", 2, encoder="user/encoder")
    columns = {"condition": torch.ones(24, 2), "condition_text": ["a cat"] * 23 + ["a | dog"]}
    save_parameter_dataset(dataset.vectors(), dataset.layout, tmp_path / "told", columns=columns, conditions=spec)
    card = render(tmp_path / "told")
    assert "| `condition` | list of 2 float | what the network was trained for" in card
    assert "| `condition_text` | string | the same as a sentence |" in card
    told = "Conditions are text (2 numbers of user/encoder); 1 different, 24 rows of each. Example: `a cat`"
    assert told in card and "Conditions are" not in render(folder)
