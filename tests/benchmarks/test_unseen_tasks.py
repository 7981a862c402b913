import pytest
import torch

import unseen_tasks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe


def all_subsets(num=6):
    numbers = torch.arange(1, 2**num - 1)
    return (numbers[:, None] >> torch.arange(num) & 1).float()


def tasks_of(conditions, vectors=None):
    rows = torch.arange(len(conditions))
    vectors = torch.zeros(len(conditions), 3) if vectors is None else vectors
    return unseen_tasks.Tasks(vectors, conditions, rows, conditions, None, None)


@pytest.mark.parametrize("pairs", [False, True])
def test_ridge_finds_what_is_linear_in_its_features(pairs):
    torch.manual_seed(0)
    conditions = all_subsets()[torch.randperm(62)]
    targets = (unseen_tasks.features(conditions, True) @ torch.randn(22, 3, dtype=torch.float64)).float()
    predict = unseen_tasks.ridge(tasks_of(conditions[:50]), targets[:50], 1e-9, pairs)
    error = (predict(conditions[50:]) - targets[50:]).abs().max()
    assert error < 1e-4 if pairs else error > 0.5


def test_kernel_ridge_goes_through_the_seen_and_to_their_mean_far_away():
    torch.manual_seed(0)
    conditions, targets = all_subsets(), torch.randn(62, 3)
    predict = unseen_tasks.kernel_ridge(tasks_of(conditions), targets, 1e-9, 1.0)
    torch.testing.assert_close(predict(conditions), targets, atol=1e-4, rtol=0)
    torch.testing.assert_close(predict(100 + conditions[:1]), targets.mean(0, keepdim=True))


def test_the_nearest_seen_tasks_are_those_with_the_fewest_other_classes():
    seen = tasks_of(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]]))
    (near, other) = unseen_tasks.nearest_seen(seen, torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1]]))
    assert near.tolist() == [0, 2] and other.tolist() == [1]


def test_a_task_and_its_complement_are_one_observation():
    conditions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 1]])
    assert unseen_tasks.by_group(torch.tensor([1.0, 5, 3]), conditions).tolist() == [2, 5]


def test_all_ways_are_compared_on_the_unseen_tasks_of_a_run(tmp_path, monkeypatch, capsys):
    settings = ["collect.seen=10", "collect.validation=2", "collect.unseen=3"]
    run_recipe(load_recipe("digits-subsets", settings, profile="cpu-smoke"), tmp_path / "run")
    out = tmp_path / "numbers.json"
    monkeypatch.setattr("sys.argv", ["unseen_tasks.py", str(tmp_path / "run"), "--draws", "2", "--out", str(out)])
    unseen_tasks.main()
    printed = capsys.readouterr().out
    assert "20 seen, 4 validation, 6 unseen tasks; 2 draws of each" in printed
    rows = {row["way"]: row for row in unseen_tasks.json.loads(out.read_text())["rows"]}
    assert rows["oracle: trained on the task"]["recovered"] == 1 and rows["majority"]["recovered"] == 0
    assert len(rows) == 14 and all(0 <= row["worst"] <= row["accuracy"] <= 1 for row in rows.values())
    generated, oracle = rows["generated"], rows["oracle: trained on the task"]
    assert oracle["generated_minus"] == pytest.approx(generated["accuracy"] - oracle["accuracy"], abs=1e-6)
