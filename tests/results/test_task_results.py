"""The part `tasks` of `metrics.json`."""

import pytest

from pdiff_hf.results.metrics import Metrics
from pdiff_hf.results.tasks import TaskGroup, TaskResults


def test_tasks_are_written_and_read_again_and_absent_elsewhere(tmp_path):
    groups = {
        "generated": TaskGroup(accuracy=0.98, ci95=[0.97, 0.99], role="generator"),
        "ridge_weights": TaskGroup(accuracy=0.75, difference=0.23, difference_ci95=[0.21, 0.25], role="weights"),
    }
    tasks = TaskResults(num_seen=880, num_unseen=100, draws=8, names=["2", "2+5"], sizes=[1, 2], unseen=groups)
    Metrics(tasks=tasks).write(tmp_path / "metrics.json")
    found = Metrics.read(tmp_path / "metrics.json")
    assert found.tasks == tasks
    assert list(found.tasks.of_role("weights")) == ["ridge_weights"]
    Metrics(num_test=3).write(tmp_path / "other.json")
    assert Metrics.read(tmp_path / "other.json").tasks is None


def test_an_accuracy_that_is_no_number_names_its_place():
    values = {"schema": 2, "tasks": {"unseen": {"oracle": {"accuracy": "high"}}}}
    with pytest.raises(ValueError, match=r"metrics\.json: tasks\.unseen\.oracle\.accuracy"):
        Metrics.from_dict(values)
