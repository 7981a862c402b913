import json

import pytest
import torch

from pdiff_hf.app.questions import list_questions, write_condition
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.models.condition_encoder import ConditionEncoder


def encoder(*specs):
    spec = specs[0] if len(specs) == 1 else ConditionSpec.composed(*specs)
    return ConditionEncoder(**spec.to_dict())


def test_pipelines_without_conditions_ask_nothing():
    assert list_questions(None) == [] and write_condition([], []) is None


def test_answers_make_a_condition_that_the_encoder_takes():
    found = encoder(ConditionSpec.named("classes", "abc"), ConditionSpec.named("metric", ["val_accuracy"]))
    found.fit(torch.tensor([[1.0, 0, 0, 0.5], [0, 1, 0, 0.7], [0, 0, 1, 0.9]]))
    classes, metric = list_questions(found)
    assert (classes.form, classes.choices, metric.form, metric.value) == ("several", ("a", "b", "c"), "number", 0.7)
    # Accuracies are no more than 1, whatever the spread.
    assert 0 < metric.low < 0.5 and metric.high == 1.0
    condition = json.loads(write_condition([classes, metric], [["c", "a"], 0.8]))
    assert condition == {"classes": ["a", "c"], "metric": {"val_accuracy": 0.8}}
    assert found.encode([condition]).shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "answer", "condition"),
    [
        (ConditionSpec.named("label", ["cat", "dog"]), "dog", {"label": "dog"}),
        (ConditionSpec("vector", 2), "1, -2.5", {"vector": [1.0, -2.5]}),
        (ConditionSpec("text", 3, encoder="some/encoder"), "cats, not dogs", {"text": "cats, not dogs"}),
        (ConditionSpec("text", 2), "0.5 1", {"text": [0.5, 1.0]}),
    ],
)
def test_every_kind_has_its_control(spec, answer, condition):
    assert json.loads(write_condition(list_questions(encoder(spec)), [answer])) == condition


def test_the_order_of_clicks_is_not_another_request():
    questions = list_questions(encoder(ConditionSpec.named("classes", "abc")))
    assert write_condition(questions, [["b", "a"]]) == write_condition(questions, [["a", "b"]])


@pytest.mark.parametrize("answer", [[], "", None])
def test_a_missing_answer_is_told(answer):
    with pytest.raises(ValueError, match="Classes that the networks are for: give an answer"):
        write_condition(list_questions(encoder(ConditionSpec.named("classes", "abc"))), [answer])


def test_what_is_no_number_is_told():
    with pytest.raises(ValueError, match="expected numbers, found 'one two'"):
        write_condition(list_questions(encoder(ConditionSpec("vector", 2))), ["one two"])
