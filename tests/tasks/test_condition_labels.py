import pytest
import torch

from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.tasks.conditions import condition_labels

NAMES = ["cat", "dog", "ship"]
EXAMPLES = torch.tensor([0, 1, 2, 2, 0])


def test_a_subset_is_the_task_to_tell_its_classes_from_the_others():
    spec = ConditionSpec.named("classes", ["ship", "cat"])
    conditions = torch.tensor([spec.values(["cat"]), spec.values(["cat", "ship"])])
    labels = condition_labels(EXAMPLES, NAMES, spec, conditions)
    assert labels.dtype == torch.int64 and labels.tolist() == [[1, 0, 0, 0, 1], [1, 0, 1, 1, 1]]


def test_of_several_parts_the_subset_is_the_task():
    subsets = ConditionSpec.named("classes", ["ship", "cat"])
    spec = ConditionSpec.composed(ConditionSpec.named("metric", ["ece"]), subsets)
    conditions = torch.tensor([spec.values({"metric": {"ece": 0.3}, "classes": ["cat"]})])
    assert condition_labels(EXAMPLES, NAMES, spec, conditions).tolist() == [[1, 0, 0, 0, 1]]


@pytest.mark.parametrize("spec", [None, ConditionSpec.named("metric", ["ece"]), ConditionSpec("vector", 1)])
def test_other_conditions_leave_the_labels_as_they_are(spec):
    assert condition_labels(EXAMPLES, NAMES, spec, torch.rand(2, 1)).tolist() == [EXAMPLES.tolist()] * 2


def test_subsets_of_other_classes_are_refused():
    spec = ConditionSpec.named("classes", ["cat", "horse"])
    with pytest.raises(ValueError, match=r"classes of the task, cat, dog, ship, found 'horse'"):
        condition_labels(EXAMPLES, NAMES, spec, torch.ones(1, 2))
