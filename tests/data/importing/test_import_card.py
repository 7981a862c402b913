import pytest

from pdiff_hf.data.importing.importer import import_checkpoints
from pdiff_hf.data.importing.names import parse_hub_source
from pdiff_hf.data.importing.sources import card_metrics

RESULT = """
  - task: {{type: image-classification}}
    dataset: {{type: digits, name: Digits, split: {split}}}
    metrics:
    - {{type: {kind}, value: {value}}}"""


def write_card(folder, *results, text="---\nmodel-index:\n- name: net\n  results:{}\n---\nA network.\n"):
    found = "".join(RESULT.format(split=split, kind=kind, value=value) for split, kind, value in results)
    (folder / "README.md").write_text(text.format(found))
    return folder / "README.md"


@pytest.mark.parametrize(
    ("results", "metrics"),
    [
        ([("test", "accuracy", 0.75), ("validation", "loss", 1.5)], {"test_accuracy": 0.75, "val_loss": 1.5}),
        ([("validation", "accuracy", 93.5)], {"val_accuracy": 0.935}),
        ([("train", "accuracy", 1.0), ("test", "F1 score", 0.5)], {"test_f1_score": 0.5}),
        ([("test", "accuracy", 0.5), ("test", "accuracy", 0.6), ("test", "loss", 1)], {"test_loss": 1}),
        ([("test", "accuracy", "unknown"), ("test", "loss", 1)], {"test_loss": 1}),
    ],
)
def test_metrics_of_a_card_are_read_where_they_have_one_value(tmp_path, results, metrics):
    assert card_metrics(write_card(tmp_path, *results), "user/net") == pytest.approx(metrics)


@pytest.mark.parametrize("text", ["A card without metadata.", "---\nlicense: mit\n---\nWithout results.", ""])
def test_card_without_results_has_no_metrics(tmp_path, text):
    assert card_metrics(write_card(tmp_path, text=text), "user/net") == {}


@pytest.mark.parametrize(
    "text",
    [
        "---\nmodel-index: [\n---\n",
        "---\nmodel-index:\n- name: net\n---\n",
        "---\n- a list\n---\n",
        "---\nmodel-index:\n- name: net\n  results: 3\n---\n",
    ],
)
def test_malformed_metadata_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=r"user/net: README.md: malformed metadata") as caught:
        card_metrics(write_card(tmp_path, text=text), "user/net")
    assert len(str(caught.value).splitlines()) == 1


def test_not_finite_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'test_loss' is nan, expected a finite number"):
        card_metrics(write_card(tmp_path, ("test", "loss", ".nan")), "user/net")


def test_hub_source_names_a_repository_and_its_revisions():
    assert parse_hub_source("hub:user/net") == ("user/net", [])
    assert parse_hub_source("hub:user/net@step1000, main") == ("user/net", ["step1000", "main"])


@pytest.mark.parametrize("source", ["hub:", "hub:a/b/c", "hub:a/b@", "hub:a/b@x,,y", "hub:a/b@x,x", "hub:../b c"])
def test_malformed_hub_source_is_refused(source):
    with pytest.raises(ValueError, match="expected hub:user/name"):
        parse_hub_source(source)


@pytest.mark.parametrize("all_revisions", [False, True])
def test_offline_import_of_what_is_not_cached_is_refused(tmp_path, all_revisions):
    with pytest.raises(ValueError, match="user/net is not in the cache, and HF_HUB_OFFLINE=1") as caught:
        import_checkpoints("hub:user/net", tmp_path / "ds", all_revisions=all_revisions)
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())
