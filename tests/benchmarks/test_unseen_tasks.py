import json

import pytest

import unseen_tasks
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe


def test_seeds_are_averaged_task_by_task(no_figures, tmp_path, monkeypatch, capsys):
    settings = ["collect.seen=10", "collect.validation=2", "collect.unseen=3"]
    run_recipe(load_recipe("digits-subsets", settings, profile="cpu-smoke"), tmp_path / "run")
    out = tmp_path / "numbers.json"
    options = ["--draws", "2", "--seeds", "0", "1", "--guidance", "0", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["unseen_tasks.py", str(tmp_path / "run"), *options])
    unseen_tasks.main()
    printed = capsys.readouterr().out
    assert "guidance 1: 20 seen, 4 validation, 6 unseen tasks; 2 draws of each" in printed
    found = json.loads(out.read_text())
    assert [*found] == ["0.0", "1.0"]
    groups = found["1.0"]["unseen"]
    assert groups["oracle"]["recovered"] == pytest.approx(1) and groups["majority"]["recovered"] == pytest.approx(0)
    generated = groups["generated"]
    assert generated["accuracy"] == pytest.approx(sum(generated["per_seed"]) / 2)
    assert groups["oracle"]["difference"] == pytest.approx(generated["accuracy"] - groups["oracle"]["accuracy"])
    assert found["0.0"]["unseen"]["generated"]["accuracies"] != generated["accuracies"]
