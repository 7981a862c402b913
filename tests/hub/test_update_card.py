import pytest
import yaml
from huggingface_hub import ModelCard

from artefacts import METRICS, save_dataset, save_pipeline
from pdiff_hf.data.card import write_dataset_card
from pdiff_hf.hub.card_text import update_card, write_card
from pdiff_hf.pipelines.card import write_pipeline_card
from pdiff_hf.results.metrics import Metrics

OLD = """---
library_name: diffusers
tags:
- pdiff-hf
---
# Title

<!-- pdiff:begin a -->
old a
<!-- pdiff:end a -->

## Heading

<!-- pdiff:begin b -->
old b
<!-- pdiff:end b -->
"""
NEW = OLD.replace("old", "new").replace("- pdiff-hf\n", "- pdiff-hf\n- second\n").replace("Title", "Another")


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = save_pipeline(tmp_path_factory.mktemp("cards"))

    def render(metrics=None):
        (folder / "README.md").unlink(missing_ok=True)
        return write_pipeline_card(folder, metrics).read_text(encoding="utf-8")

    return render(), render(Metrics.from_dict(METRICS))


def test_blocks_are_replaced_and_the_rest_is_kept():
    edited = OLD.replace("## Heading", "## My heading\n\nMy words.") + "\nMy end.\n"
    updated = update_card(edited, NEW)
    assert "new a" in updated and "new b" in updated and "old" not in updated
    assert "# Title" in updated and "## My heading\n\nMy words." in updated and updated.endswith("\nMy end.\n")


def test_deleted_blocks_stay_deleted():
    start, end = OLD.index("<!-- pdiff:begin a"), OLD.index("## Heading")
    updated = update_card(OLD[:start] + OLD[end:], NEW)
    assert "new b" in updated and "new a" not in updated


def test_text_whose_marks_were_removed_is_a_persons():
    edited = OLD.replace("<!-- pdiff:begin a -->\n", "").replace("<!-- pdiff:end a -->\n", "")
    assert "old a" in update_card(edited, NEW) and "new a" not in update_card(edited, NEW)
    half = OLD.replace("<!-- pdiff:end a -->\n", "")
    assert "old a" in update_card(half, NEW) and "new b" in update_card(half, NEW)


def test_keys_of_a_person_stay_and_ours_are_renewed():
    edited = OLD.replace("library_name: diffusers", "license: mit\nlibrary_name: mine\nthumbnail: x.png").replace(
        "- pdiff-hf", "- my-tag\n- pdiff-hf"
    )
    new = NEW.replace("library_name", "license: apache-2.0\nlibrary_name")
    found = metadata(update_card(edited, new))
    assert found == {
        "license": "mit",
        "library_name": "diffusers",
        "thumbnail": "x.png",
        "tags": ["my-tag", "pdiff-hf", "second"],
    }
    assert list(found)[:2] == ["license", "library_name"]


def test_metadata_that_need_no_change_stay_as_they_were_typed():
    edited = OLD.replace("tags:\n- pdiff-hf", "# why\ntags:   [ pdiff-hf ]")
    assert update_card(edited, OLD.replace("old", "new")) == edited.replace("old", "new")


def test_readme_of_a_person_stays_as_it_is():
    for text in ("mine", "---\nlicense: mit\n---\n# Mine\n"):
        assert update_card(text, NEW) == text


def test_metadata_alone_get_the_whole_card():
    updated = update_card("---\nlicense: mit\n---\n", NEW)
    assert metadata(updated) == {**metadata(NEW), "license": "mit"}
    assert updated.endswith(NEW.partition("\n---\n")[2])
    assert update_card("", NEW) == NEW


def test_lines_keep_their_ends():
    updated = update_card(OLD.replace("\n", "\r\n"), NEW)
    assert "new a" in updated and updated.count("\n") == updated.count("\r\n")


def test_updating_again_changes_nothing(cards):
    plain, evaluated = cards
    for existing in (OLD + "Mine.", plain + "Mine.", evaluated.replace("tags:", "license: mit\ntags:")):
        for new in (NEW, plain, evaluated):
            once = update_card(existing, new)
            assert update_card(once, new) == once
    assert update_card(evaluated, evaluated) == evaluated


def test_evaluation_and_its_end_reach_an_edited_card(cards):
    plain, evaluated = cards
    updated = update_card(plain + "Mine.", evaluated)
    assert METRICS["verdict"] in updated and len(ModelCard(updated).data.eval_results) == 2
    back = update_card(updated, plain)
    assert "Not evaluated" in back and "model-index" not in back and back.endswith("Mine.")


def test_results_of_others_stay_in_the_model_index(cards):
    plain, evaluated = cards
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "Other", "type": "other"},
        "metrics": [{"type": "accuracy", "value": 0.5, "name": "robust accuracy"}],
    }
    index = yaml.safe_dump({"model-index": [{"name": "mine", "results": [result]}]})
    edited = plain.replace("tags:", f"{index}tags:")
    for text in (update_card(edited, evaluated), update_card(update_card(edited, evaluated), evaluated)):
        assert [r.metric_name for r in ModelCard(text).data.eval_results].count("robust accuracy") == 1
        assert len(ModelCard(text).data.eval_results) == 3
    assert metadata(update_card(text, plain))["model-index"][0]["results"] == [result]


def test_configs_are_replaced_by_their_names(tmp_path):
    folder = save_dataset(tmp_path)
    path = folder / "README.md"
    path.unlink()
    write_dataset_card(folder)
    other = "configs:\n- config_name: tiny\n  data_files: tiny/data/train-*.parquet\n"
    path.write_text(path.read_text(encoding="utf-8").replace("configs:\n", other), encoding="utf-8")
    before = path.read_bytes()
    write_dataset_card(folder)
    assert path.read_bytes() == before
    assert [c["config_name"] for c in metadata(before.decode())["configs"]] == ["tiny", "default"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "---\na: [\n---\n<!-- pdiff:begin a --><!-- pdiff:end a -->",
            "the lines --- of a card is not valid YAML: line",
        ),
        ("---\n- a\n---\n<!-- pdiff:begin a --><!-- pdiff:end a -->", "expected keys and values .* found list"),
        ("---\nmodel-index: 3\n---\n<!-- pdiff:begin a --><!-- pdiff:end a -->", "expected a model-index of models"),
    ],
)
def test_malformed_metadata_are_refused_and_the_file_is_kept(tmp_path, text, message):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        write_card(path, NEW)
    assert str(path) in str(caught.value) and path.read_text() == text
