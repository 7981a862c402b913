"""Whole runs on the pretended accelerator: nothing is on the wrong device, and the results are those of the CPU."""

import pytest
import torch

from factories import TINY_ZOO, tiny_recipe
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.files import read_json
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_run_is_that_of_the_cpu(tiny_run, pretended, tmp_path):
    run_recipe(tiny_recipe(), tmp_path / "run")

    assert pretended.launches.total() > 10_000
    expected, found = (ParameterDataset(folder / "dataset") for folder in (tiny_run, tmp_path / "run"))
    assert torch.equal(found.vectors(rows=slice(None)), expected.vectors(rows=slice(None)))
    expected, found = (
        load_generated(folder / "generated", expected.layout) for folder in (tiny_run, tmp_path / "run")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected, found = (read_json(folder / "report" / "metrics.json") for folder in (tiny_run, tmp_path / "run"))
    accuracies = [[g["test_accuracy"]["mean"] for g in metrics["groups"].values()] for metrics in (expected, found)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=5e-4)


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: load_recipe("digits-runs", TINY_ZOO),
        lambda: load_recipe("resnet_mini-last_norms-digits", profile="cpu-smoke"),
        lambda: tiny_recipe("autoencoder.mixed_precision=bf16", "diffusion.mixed_precision=bf16"),
    ],
    ids=["zoo", "resnet", "bf16"],
)
def test_other_runs_reach_their_report(pretended, tmp_path, recipe):
    assert run_recipe(recipe(), tmp_path / "run").generated.n > 0
