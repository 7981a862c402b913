"""Conditions become class labels: standardised by the training rows, saved, and refused where they are none."""

import pytest
import torch

from pdiff_hf import ConditionEncoder
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.text_encoder import TextEncoder
from small_encoders import save_encoder

CLASSES = ConditionSpec.named("classes", ["airplane", "cat", "dog"])


def encoder_of(spec, rows=None):
    encoder = ConditionEncoder(**spec.to_dict())
    if rows is not None:
        encoder.fit(torch.tensor(rows))
    return encoder


@pytest.mark.parametrize("value", [["cat", "dog"], [1, 2]])
def test_classes_become_signs_whatever_was_trained_on(value):
    encoder = encoder_of(CLASSES, [[1.0, 0, 0], [1, 0, 1]])
    assert encoder.encode([{"classes": value}]).tolist() == [[-1, 1, 1]]
    assert encoder.encode(torch.tensor([[0.0, 1, 1]])).tolist() == [[-1, 1, 1]]


def test_metrics_are_standardised_by_the_training_rows_where_they_vary():
    spec = ConditionSpec.named("metric", ["val_accuracy", "ece"])
    encoder = encoder_of(spec, [[0.5, 0.1], [0.9, 0.1]])
    found = encoder.encode([{"metric": {"ece": 0.3, "val_accuracy": 0.9}}])
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.2]]))


def test_saved_and_loaded_it_encodes_the_same_in_float32(tmp_path):
    spec = ConditionSpec("vector", 3)
    encoder = encoder_of(spec, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).tolist())
    encoder.save_pretrained(tmp_path)
    loaded = ConditionEncoder.from_pretrained(tmp_path, torch_dtype=torch.float16).to(torch.float16)
    condition = [{"vector": [0.1, 0.2, 0.3]}]
    assert loaded.spec == spec and ConditionSpec.from_dict(loaded.config) == spec
    assert torch.equal(loaded.encode(condition), encoder.encode(condition))


def test_sentences_are_embedded_by_what_is_given():
    encoder = encoder_of(
        ConditionSpec(
            "text",
            2,
        )
    )

    def embed(sentences):
        return torch.tensor([[len(sentence), 1.0] for sentence in sentences])

    found = encoder.encode([{"text": "cats"}, {"text": [0.5, 0.5]}, {"text": "a dog"}], embed=embed)
    assert found.tolist() == [[4, 1], [0.5, 0.5], [5, 1]]
    with pytest.raises(ValueError, match=r"nothing here embeds the sentence 'cats'.*give the 2 numbers"):
        encoder.encode([{"text": "cats"}])


def test_sentences_are_embedded_by_the_encoder_that_is_named(tmp_path):
    own = TextEncoder(save_encoder(tmp_path))
    encoder = encoder_of(ConditionSpec("text", own.size, encoder=str(tmp_path)))
    torch.testing.assert_close(encoder.encode([{"text": "cats and dogs"}]), own(["cats and dogs"]))
    lost = encoder_of(ConditionSpec("text", 2, encoder=str(tmp_path / "lost")))
    with pytest.raises(ValueError, match=r"expected a text encoder in a folder or on the Hub, found none") as caught:
        lost.encode([{"text": "cats"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"label": "cat"}, r'expected a condition as \{"classes": …\} of classes \(airplane, cat, dog\)'),
        (["cat"], r"found \['cat'\]"),
        ({"classes": ["cat"], "metric": {}}, "expected a condition as"),
        ({"classes": ["horse"]}, "expected names among airplane, cat, dog.*found 'horse'"),
        ({"classes": []}, "expected one class or more"),
        ({"classes": [3]}, "indices below 3, found 3"),
    ],
)
def test_what_is_no_condition_of_its_kind_is_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(CLASSES).encode([condition])


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.0, 1.0], [0.5, 1.0, 0.0], [float("nan"), 1.0, 0.0]])
def test_numbers_that_cannot_be_of_a_condition_are_refused(row):
    with pytest.raises(ValueError, match="condition of kind classes: expected"):
        encoder_of(CLASSES).encode(torch.tensor([row]))
