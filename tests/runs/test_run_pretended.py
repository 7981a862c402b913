"""Whole runs on the pretended accelerator: nothing is on the wrong device, and the results are those of the CPU."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from factories import TINY_ZOO, tiny_recipe
from functional_zoo import FUNCTIONAL, make_zoo
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.files import read_json
from pdiff_hf.machine import default_device
from pdiff_hf.models.kinds import AutoencoderFunctionalConfig, UNet1DConditionConfig
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.tasks.evaluators import make_gate_evaluator
from pdiff_hf.tasks.probes import make_probes
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion

BF16 = ["autoencoder.mixed_precision=bf16", "diffusion.mixed_precision=bf16"]

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
        lambda: load_recipe("resnet_mini-last_norms-digits", BF16, profile="cpu-smoke"),
    ],
    ids=["zoo", "resnet in bf16"],
)
def test_other_runs_reach_their_report(pretended, tmp_path, recipe):
    assert run_recipe(recipe(), tmp_path / "run").generated.n > 0


def test_stages_that_compare_functions(pretended, tmp_path):
    dataset = ParameterDataset(make_zoo(tmp_path))
    config = AutoencoderFunctionalConfig(**FUNCTIONAL)
    evaluator, probes = make_gate_evaluator(dataset), make_probes(dataset, config)
    train_autoencoder(dataset, tmp_path / "autoencoder", config, evaluator, probes=probes)
    denoiser = UNet1DConditionConfig(steps=12, block_out_channels=(16,), lr_warmup_steps=0)
    train_diffusion(dataset, tmp_path / "autoencoder", tmp_path / "pipeline", denoiser)
    assert pretended.launches.total() > 5_000


def test_commands_on_a_run(pdiff, pretended, tiny_run_copy):
    networks = tiny_run_copy / "chosen"
    chosen = ("--num-samples", 8, "--choose", "val", "--top", 2, "--soup", "--dataset", tiny_run_copy / "dataset")
    for arguments in (
        ("generate", tiny_run_copy / "pipeline", "--out", networks, "--num-inference-steps", 5, *chosen),
        ("evaluate", tiny_run_copy),
        ("inspect", tiny_run_copy / "dataset"),
        ("trajectory", tiny_run_copy, "--num-starts", 2, "--num-inference-steps", 4),
    ):
        code, _, error = pdiff(*arguments)
        assert code == 0, (arguments, error)


def test_training_goes_on_from_a_checkpoint(pretended, tiny_run_copy, tmp_path):
    config = tiny_recipe(
        "autoencoder.checkpointing_steps=5", "autoencoder.checkpoints_total_limit=2", "autoencoder.steps=12"
    ).autoencoder
    dataset = tiny_run_copy / "dataset"
    train_autoencoder(dataset, tmp_path / "whole", config)
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "resumed" / "checkpoint-5")
    train_autoencoder(dataset, tmp_path / "resumed", config, resume_from_checkpoint="latest")
    expected, found = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("whole", "resumed")
    )
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_devices_of_base_training_and_generation_obey_that_they_are_to_use_the_cpu(pretended, tiny_run, monkeypatch):
    assert load_pipeline(tiny_run / "pipeline").device.type == default_device().type == "pretend"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert load_pipeline(tiny_run / "pipeline").device.type == default_device().type == "cpu"


@pytest.mark.slow
def test_a_run_obeys_that_it_is_to_use_the_cpu(pretended, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run_recipe(tiny_recipe(), tmp_path / "run").generated.n > 0
    assert pretended.launches.total() == pretended.to_device.total() == 0
