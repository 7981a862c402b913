import json

import pytest
import torch

import metric_condition
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import autoencoder_stage, collect, diffusion_stage
from pdiff_hf.tasks.evaluators import open_task


def test_calibration_errors_are_wanted_and_got(tmp_path, monkeypatch, capsys):
    settings = ["collect.metric=[val_ece]", "autoencoder.latent_channels=4"]
    recipe, run = load_recipe("digits-accuracy", settings, profile="cpu-smoke"), Run(tmp_path / "run")
    run.folder.mkdir()
    collect(recipe, run.path("collect"))
    dataset = ParameterDataset(run.path("collect"))
    autoencoder_stage(dataset, run.path("autoencoder"), recipe.autoencoder, open_task(dataset))
    diffusion_stage(dataset, run.path("autoencoder"), run.path("diffusion"), recipe.diffusion)
    out = tmp_path / "numbers.json"
    monkeypatch.setattr("sys.argv", ["metric_condition.py", str(run.folder), "--draws", "2", "--out", str(out)])
    metric_condition.main()
    header, rule, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (header, rule, *rows)} == {11} and len(rows) == 5
    found = json.loads(out.read_text())
    ece = torch.tensor(dataset.rows["val_ece"][:])
    assert [found["wanted"][0], found["wanted"][-1]] == pytest.approx([ece.min().item(), ece.max().item()])
    # Networks of the collection are at most as far from what is wanted as the range is wide, and are found in it.
    got = found["seeds"][0]["seen, of the nearest accuracy"]["got"]
    assert all(ece.min() - 1e-5 <= value <= ece.max() + 1e-5 for value in got)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "found none"),
        (ConditionSpec.named("classes", ["cat", "dog"]), "cat"),
        (ConditionSpec.named("metric", ["epoch"]), "epoch"),
    ],
)
def test_other_conditions_are_one_line(tmp_path, monkeypatch, capsys, spec, message):
    size, told = 0 if spec is None else spec.size, {"run": ["a", "b"], "step": [1, 1]}
    if size:
        told["condition"] = torch.ones(2, size)
    layout = ParameterLayout((TensorSpec("weight", (30,), 0),))
    ParameterDataset.write(torch.rand(2, 30), layout, tmp_path / "run" / "dataset", columns=told, conditions=spec)
    monkeypatch.setattr("sys.argv", ["metric_condition.py", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        metric_condition.main()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and message in said
    assert "expected conditions of one of val_accuracy, val_ece" in said
