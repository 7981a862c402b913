"""Conditions of which something is left open: as numbers, and hidden while training."""

import pytest
import torch

from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.models.condition_encoder import ConditionEncoder

CLASSES = ConditionSpec.named("classes", ["cat", "dog", "ship", "truck"])
METRIC = ConditionSpec.named("metric", ["val_accuracy", "ece"])
BOTH = ConditionSpec.composed(CLASSES, METRIC)
ROWS = torch.tensor([[1.0, 0, 0, 0, 0.5, 0.1], [1, 1, 1, 0, 0.9, 0.3]])


def encoder_of(spec=BOTH, rows=ROWS):
    encoder = ConditionEncoder(**spec.to_dict(), partial=True).eval()
    encoder.fit(rows)
    return encoder


@pytest.mark.parametrize(
    "condition, values, known",
    [
        ({"classes": ["cat", "dog"]}, [1, 1, -1, -1, 0, 0, 0], "1111001"),
        ({"classes": {"include": ["cat"], "size": 3}}, [1, 0, 0, 0, 0, 0, 1], "1000001"),
        ({"classes": {"exclude": ["ship"]}}, [0, 0, -1, 0, 0, 0, 0], "0010000"),
        ({"classes": {"include": ["cat", "dog"], "exclude": ["ship", "truck"]}}, [1, 1, -1, -1, 0, 0, 0], "1111001"),
        ({"classes": {"size": 1}, "metric": {"val_accuracy": 0.9}}, [0, 0, 0, 0, 1, 0, -1], "0000101"),
        ({"metric": {"val_accuracy": 0.5, "ece": 0.3}}, [0, 0, 0, 0, -1, 1, 0], "0000110"),
    ],
)
def test_what_is_left_open_is_zero_and_said_to_be(condition, values, known):
    (labels,) = encoder_of().encode([condition])
    expected = torch.tensor([*map(float, values), *map(float, known)])
    torch.testing.assert_close(labels, expected, atol=1e-6, rtol=0)


def test_complete_conditions_are_the_same_by_their_words_and_by_their_numbers():
    encoder = encoder_of()
    condition = {"classes": ["cat", "dog", "ship"], "metric": {"val_accuracy": 0.9, "ece": 0.3}}
    torch.testing.assert_close(encoder.encode([condition]), encoder(ROWS[1:]))
    assert encoder(ROWS)[:, 7:].min() == 1


@pytest.mark.parametrize(
    "condition, message",
    [
        ({"classes": {"include": ["cat"], "exclude": ["cat"]}}, "expected cat to be in it or not, found both"),
        ({"classes": {"include": ["cat", "dog"], "size": 1}}, "expected a subset of 2 to 4 classes"),
        ({"classes": {"exclude": ["cat"], "size": 4}}, "expected a subset of 1 to 3 classes"),
        ({"classes": {"exclude": [0, 1, 2, 3]}}, "expected a subset of 1 to 0 classes"),
        ({"classes": {"includes": ["cat"]}}, "expected include, exclude, size, found"),
        ({"classes": {"include": ["bird"]}}, "expected names among cat, dog"),
        ({"classes": []}, "one class or more"),
        ({"metric": {"val_accuracy": float("nan")}}, "finite numbers"),
        ({"metric": {"val_acc": 1.0}}, "a number for each of val_accuracy, ece"),
        ({"label": "cat"}, r'as \{"classes": …, "metric": …\}'),
        ({}, r'as \{"classes": …, "metric": …\}'),
    ],
)
def test_what_no_network_can_be_for_is_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        encoder_of().encode([condition])


def test_a_description_is_encoded_as_what_it_describes():
    encoder = encoder_of()
    condition = {"classes": {"include": [0], "exclude": ["dog"], "size": 2}, "metric": {"ece": 0.25}}
    described = encoder.describe(condition)
    assert described == {"classes": {"include": ["cat"], "exclude": ["dog"], "size": 2}, "metric": {"ece": 0.25}}
    assert torch.equal(encoder.encode([described]), encoder.encode([condition]))
    assert encoder.describe({"classes": [1]}) == {"classes": ["dog"]}


def test_training_hides_parts_in_a_share_of_the_rows():
    encoder, partial = encoder_of(), encoder_of().partial
    labels = encoder(ROWS[1:]).expand(4000, -1)
    noise = torch.randn(4000, partial.num_noise, generator=torch.Generator().manual_seed(0))
    hidden = partial.hide(labels, noise, 0.5)
    known = hidden[:, 7:].bool()
    # What is known stays as it is, and what is not is zero.
    assert torch.equal(hidden[:, :7], torch.where(known, labels[:, :7], 0.0))
    # Half of the rows keep all. Of the others a third keeps all of a part and a third is drawn number by number, which
    # then keeps all of n with chance 1 / (n + 1).
    all_classes, all_metrics = (1 + 1 / 5) / 3, (1 + 1 / 3) / 3
    assert known.all(1).float().mean() == pytest.approx(0.5 + 0.5 * all_classes * all_metrics, abs=0.03)
    assert known[:, 4:6].any(1).logical_not().float().mean() == pytest.approx(0.5 * all_metrics, abs=0.03)
    some = known[:, :4].any(1) & ~known[:, :4].all(1)
    # Of four classes some are open with chance 3/5, where each has the same that is drawn for the row.
    assert some.float().mean() == pytest.approx(0.5 * 3 / 5 / 3, abs=0.03)
    assert known[some, 6].float().mean() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(partial.hide(labels, noise, 0.0), labels)


def test_rows_differ_from_what_is_known_of_a_condition_alone():
    encoder = encoder_of()
    rows = encoder(ROWS)
    told = encoder.encode([{"classes": {"include": ["cat"]}}, {"classes": {"size": 3}}, {"metric": {"ece": 0.2}}])
    assert encoder.partial.differ(told, rows).tolist() == [[False, False], [True, False], [True, True]]


def test_saved_and_loaded_it_leaves_the_same_open(tmp_path):
    encoder = encoder_of()
    encoder.save_pretrained(tmp_path)
    loaded = ConditionEncoder.from_pretrained(tmp_path)
    condition = [{"classes": {"size": 3}}]
    assert loaded.spec == BOTH and torch.equal(loaded.encode(condition), encoder.encode(condition))


def test_nothing_of_a_sentence_can_be_left_open():
    with pytest.raises(ValueError, match="expected conditions of which parts can be left open"):
        ConditionEncoder(**ConditionSpec("text", 3).to_dict(), partial=True)
