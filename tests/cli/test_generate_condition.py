"""`pdiff generate --condition`: what is drawn, written down, shown and refused."""

import json

import pytest
import torch

from factories import make_conditional_pipeline, make_dataset, make_pipeline
from pdiff_hf import ConditionEncoder, PDiffPipeline, load_generated
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.hub.card_text import REPO_ID
from pdiff_hf.pipelines.card import write_pipeline_card
from pdiff_hf.runs.generate import generate_networks

PETS = '{"classes": ["cat", "dog"]}'
FEW = ["--num-samples", 2, "--num-inference-steps", 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional") / "pipeline"
    make_conditional_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "pipeline"
    make_pipeline("pca").save_pretrained(folder)
    return folder


def test_networks_are_drawn_for_a_condition_that_is_written_down(pdiff, folder, tmp_path):
    out = tmp_path / "out"
    given = [*FEW, "--condition", '{"classes": [1, 2]}', "--guidance-scale", 1.5]
    code, _, err = pdiff("generate", folder, "--out", out, *given)
    assert code == 0, err
    index = json.loads((out / "index.json").read_text())
    assert index["condition"] == {"classes": ["cat", "dog"]} and index["guidance_scale"] == 1.5
    pipeline = PDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    other = tmp_path / "other"
    generate_networks(pipeline, other, 2, 4, condition={"classes": ["cat", "dog"]}, guidance_scale=1.5)
    assert torch.equal(*(load_generated(made, pipeline.layout) for made in (out, other)))
    generate_networks(pipeline, tmp_path / "cats", 2, 4, condition={"classes": ["cat"]}, guidance_scale=1.5)
    assert not torch.equal(*(load_generated(made, pipeline.layout) for made in (out, tmp_path / "cats")))


def test_each_network_may_have_its_own_condition_whatever_the_batches(folder, tmp_path, monkeypatch):
    pipeline = PDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    conditions = [{"classes": [place]} for place in (0, 1, 2)]
    monkeypatch.setattr("pdiff_hf.runs.generate.BATCH", 2)
    generate_networks(pipeline, tmp_path / "all", 3, 4, condition=conditions)
    found = load_generated(tmp_path / "all", pipeline.layout)
    for place, condition in enumerate(conditions):
        generate_networks(pipeline, tmp_path / str(place), 3, 4, condition=condition)
        alone = load_generated(tmp_path / str(place), pipeline.layout)
        torch.testing.assert_close(found[place], alone[place], atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "all" / "index.json").read_text())["condition"][2] == {"classes": ["dog"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--condition", "{cat}"], '--condition {cat} is not valid JSON, such as \'{"classes": ["cat", "dog"]}\''),
        (["--condition", '{"classes": ["horse"]}'], "found 'horse'"),
        (["--condition", '{"classes": []}'], "one class or more"),
        (["--condition", '{"label": "cat"}'], 'expected a condition as {"classes": …}'),
        (["--condition", "[]"], "found an empty list"),
        (["--condition", "null"], "give --condition as"),
        (["--condition", f"[{PETS}, {PETS}, {PETS}]"], "got 3 conditions for 2 networks"),
        (["--condition", PETS, "--guidance-scale", "inf"], "--guidance-scale must be 0 or more"),
        ([], 'give --condition as {"classes": …}, or --guidance-scale 0 for those of all conditions'),
    ],
)
def test_what_is_no_condition_is_one_line(pdiff, folder, tmp_path, given, message):
    code, _, err = pdiff("generate", folder, "--out", tmp_path / "out", *FEW, *given)
    assert code == 2 and len(err.strip().splitlines()) == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_without_conditions_takes_none(pdiff, plain, tmp_path):
    code, _, err = pdiff("generate", plain, "--out", tmp_path / "out", *FEW, "--condition", PETS)
    assert code == 2 and "this pipeline was trained without conditions; leave out --condition." in err
    assert list(tmp_path.iterdir()) == []


def test_info_says_what_networks_are_drawn_for(pdiff, folder, plain):
    _, out, _ = pdiff("info", folder, "--json")
    found = json.loads(out)
    assert found["conditions"] == "classes (airplane, cat, dog)"
    assert "conditions" not in json.loads(pdiff("info", plain, "--json")[1])


@pytest.mark.parametrize(
    ("spec", "argument", "line"),
    [
        (
            ConditionSpec.named("classes", ["cat", "<b>"]),
            'condition={"classes": ["cat", "\\u003cb>"]}',
            "classes (cat, ",
        ),
        (ConditionSpec.named("label", ["cat", "dog"]), 'condition={"label": "cat"}', "label (cat, dog)"),
        (ConditionSpec.named("metric", ["ece"]), 'condition={"metric": {"ece": 0.25}}', "metric (ece)"),
        (ConditionSpec("vector", 3), "condition_embeds=torch.zeros(1, 3)", "vector (3 numbers)"),
    ],
)
def test_the_card_shows_how_to_ask_for_one(tmp_path, spec, argument, line):
    pipeline = make_conditional_pipeline(spec)
    if spec.kind == "metric":
        pipeline.condition_encoder.fit(torch.tensor([[0.2], [0.3]]))
    pipeline.save_pretrained(tmp_path)
    text = write_pipeline_card(tmp_path).read_text(encoding="utf-8")
    assert f"pipe({argument}, batch_size=10" in text and f"Conditions: {line}" in text
    names = {}
    exec(text.partition("```python\n")[2].partition("```")[0].replace(REPO_ID, str(tmp_path)), names)
    assert len(names["out"].parameters) == 10


def test_the_example_of_texts_is_a_sentence_where_something_embeds_it():
    assert ConditionEncoder("text", 2, encoder="user/encoder").example() == {"text": "a sentence"}
    assert ConditionEncoder("text", 2).example() is None


def test_training_with_conditions_takes_a_dataset_that_has_them(pdiff, tmp_path):
    dataset = make_dataset(tmp_path)
    code, _, err = pdiff("train", dataset, "--out", tmp_path / "run", "--set", "diffusion.condition=true")
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert (
        'expected a parameter dataset with conditions for --set "diffusion.condition=true", found one without' in err
    )
    assert not (tmp_path / "run").exists()


BOTH = ConditionSpec.composed(
    ConditionSpec.named("classes", ["airplane", "cat", "dog"]), ConditionSpec.named("metric", ["val_accuracy"])
)


def test_networks_are_drawn_for_several_conditions_at_once(pdiff, tmp_path):
    make_conditional_pipeline(BOTH).save_pretrained(tmp_path / "pipeline")
    given = ["--condition", '{"classes": ["cat"], "metric": {"val_accuracy": 0.9}}']
    code, _, err = pdiff("generate", tmp_path / "pipeline", "--out", tmp_path / "out", *FEW, *given)
    assert code == 0, err
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["condition"] == {"classes": ["cat"], "metric": {"val_accuracy": 0.9}}
    write_pipeline_card(tmp_path / "pipeline")
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert 'condition={"classes": ["airplane", "cat"], "metric": {"val_accuracy": 0.0}}' in card
    code, _, err = pdiff("generate", tmp_path / "pipeline", "--out", tmp_path / "no", *FEW, "--condition", PETS)
    assert code == 2 and 'as {"classes": …, "metric": …}' in " ".join(err.split()) and "Traceback" not in err
    assert "diffusion.partial_conditions" in err and not (tmp_path / "no").exists()


def test_something_may_be_left_open(pdiff, tmp_path):
    make_conditional_pipeline(BOTH, partial=True).save_pretrained(tmp_path / "pipeline")
    given = ["--condition", '{"classes": {"include": ["cat"], "size": 2}}']
    code, _, err = pdiff("generate", tmp_path / "pipeline", "--out", tmp_path / "out", *FEW, *given)
    assert code == 0, err
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["condition"] == {"classes": {"include": ["cat"], "size": 2}}
    given = ["--condition", '{"classes": {"include": ["cat"], "size": 9}}']
    code, _, err = pdiff("generate", tmp_path / "pipeline", "--out", tmp_path / "no", *FEW, *given)
    assert code == 2 and "a subset of 1 to 3 classes" in " ".join(err.split()) and not (tmp_path / "no").exists()
