"""A whole run by two processes against one; they are started once."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from run_two_processes import generate
from safetensors.torch import load_file

from factories import TINY_RUN
from pdiff_hf.data.dataset import load_parameter_dataset
from pdiff_hf.data.vectors import dataset_vectors
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from processes import launch_two

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def recipe(batch_size):
    """Low learning rates: Adam's first steps turn rounding into whole steps where a gradient is tiny."""
    stages = ("autoencoder", "diffusion")
    sizes = [f"{stage}.train_batch_size={batch_size}" for stage in stages]
    rates = [f"{stage}.learning_rate=0.00001" for stage in stages]
    # GroupNorm over two channels would amplify the rounding of single networks a thousandfold.
    wide = "diffusion.block_out_channels=[64, 64]"
    return load_recipe("digits-mlp", [*TINY_RUN, *sizes, *rates, wide])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    metrics = run_recipe(recipe(16), folder / "one").to_dict()
    generate(folder / "one", folder / "generated-by-one")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(8).model_dump(mode="json")))
    script = Path(__file__).with_name("run_two_processes.py")
    code, out = launch_two(script, *(folder / name for name in ("recipe.yaml", "two", "one", "generated-by-two")))
    assert code == 0, out
    return folder, metrics


def test_collected_checkpoints_are_the_same(runs):
    folder, _ = runs
    one, two = (dataset_vectors(*load_parameter_dataset(folder / name / "dataset")) for name in ("one", "two"))
    assert torch.equal(one, two)


def test_generated_networks_are_the_same_up_to_rounding(runs):
    folder, _ = runs
    layout = load_parameter_dataset(folder / "one" / "dataset")[1]
    one, two = (load_generated(folder / name / "generated", layout) for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)


def test_evaluation_is_the_same(runs):
    folder, metrics = runs
    found = json.loads((folder / "two" / "report" / "metrics.json").read_text())
    assert found["groups"].keys() == metrics["groups"].keys()
    # Of a few hundred images, one may be classified otherwise after rounding.
    for name in metrics["groups"].keys() - {"fine_tuned"}:
        expected = metrics["groups"][name]["test_accuracy"]["mean"]
        assert found["groups"][name]["test_accuracy"]["mean"] == pytest.approx(expected, abs=0.003), name


def test_nothing_partial_is_left(runs):
    folder, _ = runs
    names = [{path.name for path in (folder / name).iterdir()} for name in ("one", "two")]
    assert names[0] == names[1]
    assert not [path for path in (folder / "two").rglob("*") if "partial" in path.name]


def test_generated_files_have_the_bytes_of_one_process(runs):
    folder, _ = runs
    one, two = (folder / name / "many" for name in ("generated-by-one", "generated-by-two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir()) and len(names) == 301
    assert [name for name in names if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_selected_networks_are_those_of_one_process(runs):
    folder, _ = runs
    one, two = (folder / name / "selected" for name in ("generated-by-one", "generated-by-two"))
    indices = [json.loads((path / "index.json").read_text()) for path in (one, two)]
    for index in indices:
        del index["choice"]["seconds"], index["choice"]["val_nll"], index["choice"]["soup_val_nll"]
    assert indices[0] == indices[1]
    for name in (*indices[0]["files"], indices[0]["soup"]):
        states = [load_file(path / name) for path in (one, two)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
