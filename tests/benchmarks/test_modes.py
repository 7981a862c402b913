import pytest
import torch

import modes
from pdiff_hf.conditions import ConditionSpec
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.recipe import load_recipe

LAYOUT = ParameterLayout((TensorSpec("weight", (30,), 0),))


def test_figure_has_as_many_points_of_every_group(tiny_run):
    run = Run(tiny_run)
    *panels, bar = modes.draw_groups(run).axes
    dataset = ParameterDataset(run.path("collect"))
    number = len(load_generated(run.path("generate"), dataset.layout))
    assert [len(axes.collections[0].get_offsets()) for axes in panels] == 3 * [number]
    mean = 100 * torch.as_tensor(dataset.rows["test_accuracy"][:]).mean().item()
    assert panels[0].get_title() == f"originals: {mean:.1f} %"
    assert "accuracy" in bar.get_ylabel()


def test_every_run_is_taken_out_once(tmp_path):
    # Corners of a square, which all runs visit and no Gaussian has.
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(2, (90, 2), generator=generator) * 2.0 - 1
    vectors = (corners + 0.02 * torch.randn(90, 2, generator=generator)) @ torch.randn(2, 30, generator=generator)
    columns = {"run": [f"run-{row // 30}" for row in range(90)], "step": [row % 30 for row in range(90)]}
    dataset = ParameterDataset.write(vectors, LAYOUT, tmp_path / "dataset", columns=columns)
    options = ["autoencoder.kind=pca", "autoencoder.latent_channels=2", "autoencoder.latent_length=1"]
    options += ["diffusion.block_out_channels=[64]", "diffusion.steps=100"]
    found = modes.unseen_runs(dataset, load_recipe("digits-cycles", options))
    assert list(found) == ["run-0", "run-1", "run-2"]
    for losses in found.values():
        assert losses["n"] == 30 and losses["validate"] == "run" and losses["num_train"] == 30
        assert losses["difference"] < -0.1 * losses["gaussian"]


@pytest.mark.parametrize("option", ["--figure", "--runs"])
def test_conditions_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, option):
    spec, vectors = ConditionSpec.named("classes", ["cat", "dog"]), torch.arange(120.0).view(4, 30)
    told = {"condition": torch.eye(2).repeat(2, 1), "run": ["a", "b", "c", "d"], "step": [1] * 4}
    ParameterDataset.write(vectors, LAYOUT, tmp_path / "run" / "dataset", columns=told, conditions=spec)
    figure = tmp_path / "figures" / "modes.png"
    given = [option, str(figure)] if option == "--figure" else [option]
    monkeypatch.setattr("sys.argv", ["modes.py", str(tmp_path / "run"), *given])
    with pytest.raises(SystemExit) as stopped:
        modes.main()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and "has conditions" in said and "cat" in said and not figure.parent.exists()
