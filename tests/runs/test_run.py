import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from factories import TINY_RUN, make_pipeline, make_vectors, tiny_recipe
from pdiff_hf.data import folder as folder_module
from pdiff_hf.data.dataset import ParameterDataset, load_parameter_dataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.autocorrelation import RunMemory
from pdiff_hf.evaluation.inspection.inspect_dataset import inspect_dataset
from pdiff_hf.models.auto import load_autoencoder
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.folder import STAGES
from pdiff_hf.runs.latents import fitted_gaussian, take_seen
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.training.denoiser import split_validation
from pdiff_hf.training.rows import read_holdout_every
from processes import launch_two


def recipe(*overrides, seed=None):
    return load_recipe("digits-mlp", [*TINY_RUN, *overrides], seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, run_recipe(recipe(), folder).to_dict()


def test_run_writes_the_folders_of_the_design(run):
    folder, _ = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert files >= {
        "recipe.yaml",
        "run.json",
        "dataset/layout.json",
        "dataset/stats.json",
        "dataset/data/train-00000.parquet",
        "dataset/base/model.safetensors",
        "dataset/README.md",
        "autoencoder/reconstruction.json",
        "autoencoder/train_log.jsonl",
        "pipeline/model_index.json",
        "pipeline/autoencoder/config.json",
        "pipeline/unet/config.json",
        "pipeline/scheduler/scheduler_config.json",
        "pipeline/base/model.safetensors",
        "pipeline/pipeline.py",
        "pipeline/train_config.json",
        "pipeline/train_log.jsonl",
        "pipeline/README.md",
        "generated/00004.safetensors",
        "generated/index.json",
        "report/metrics.json",
        "report/report.md",
        "report/accuracy_similarity.png",
        "report/loss_curves.png",
    }
    assert not [name for name in files if "partial" in name]


def test_metrics_are_those_of_the_design(run):
    folder, metrics = run
    assert json.loads((folder / "report" / "metrics.json").read_text()) == metrics
    assert metrics["schema"] == 2 and metrics["num_parameters"] == 2778 and metrics["num_test"] == 500
    assert set(metrics["groups"]) >= {"original", "reconstructed", "generated", "uniform_soup", "noise_0.05"}
    assert metrics["groups"]["original"]["n"] == 40 and metrics["groups"]["generated"]["n"] == 5
    assert list(metrics["timings_s"]) == list(metrics["peak_rss_mb"]) == list(STAGES)
    assert metrics["verdict"] and metrics["seed"] == 0
    # Fine-tuning took the time of the generator, which is that of its three stages.
    cost = {name: group["cost"]["seconds"] for name, group in metrics["groups"].items()}
    generator = sum(metrics["timings_s"][stage] for stage in ("autoencoder", "diffusion", "generate"))
    assert cost["fine_tuned"] == cost["generated"] == pytest.approx(generator)
    assert metrics["timings_s"]["fine_tune"] >= generator
    assert metrics["groups"]["fine_tuned"]["n"] == 5
    assert len(load_generated(folder / "fine_tuned", load_parameter_dataset(folder / "dataset")[1])) == 5


def test_soups_of_generated_networks_cost_what_the_generator_costs(run):
    _, metrics = run
    cost = {name: group["cost"]["seconds"] for name, group in metrics["groups"].items()}
    for name in ("uniform_soup", "greedy_soup"):
        own = cost[f"generated_{name}"] - cost["generated"]
        assert 0 < own < 10 and name in metrics["soup_comparisons"]


def test_checkpoints_of_the_run_count_as_the_independent_ones_that_inspect_finds(run):
    folder, metrics = run
    dataset, autoencoder = ParameterDataset(folder / "dataset"), load_autoencoder(folder / "pipeline" / "autoencoder")
    expected = RunMemory.measure(dataset.vectors(), dataset.order, autoencoder.normalizer).effective_size
    n_effective = {name: group["n_effective"] for name, group in metrics["groups"].items()}
    assert n_effective["original"] == pytest.approx(expected) and 2 < expected < 20
    assert inspect_dataset(dataset)["geometry"]["effective_rows"] == pytest.approx(expected, rel=0.1)
    assert min(5, expected) <= n_effective["reconstructed"] <= n_effective["noise_0.1"] <= 5
    assert n_effective["generated"] == n_effective["gaussian"] == 5 and n_effective["uniform_soup"] == 1
    assert 1 < n_effective["fine_tuned"] <= 5
    assert f"count as {expected:.1f} independent ones" in (folder / "report" / "report.md").read_text()


def test_gaussian_latents_is_the_gaussian_that_the_denoiser_contains(run):
    folder, _ = run
    pipeline = folder / "pipeline"
    dataset, autoencoder = ParameterDataset(folder / "dataset"), load_autoencoder(pipeline / "autoencoder")
    assert read_holdout_every(pipeline) == 10
    gaussian = fitted_gaussian(pipeline, autoencoder, dataset.vectors()[:2])
    stored = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("mean", "variances", "basis"):
        assert torch.equal(getattr(gaussian, name), stored[f"gaussian.{name}"])
    # Without the rows that chose a step, unless it was the first.
    train, _ = split_rows(len(dataset), 10)
    if json.loads((pipeline / "denoiser.json").read_text())["kept_step"]:
        own, _ = split_validation(recipe().diffusion, dataset.order.by_run(train.tolist()), len(gaussian.mean))
        train = train[own]
    check_gaussian(gaussian, autoencoder, dataset.vectors()[train])


def test_gaussian_latents_of_a_denoiser_without_one_is_fitted_to_the_rows_that_it_is_trained_on(tmp_path):
    pipeline, vectors = make_pipeline("pca"), make_vectors(40)
    pipeline.autoencoder.fit_statistics(vectors)
    pipeline.autoencoder.set_latent_statistics(pipeline.autoencoder.encode_rows(vectors))
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet1DModel"
    seen = take_seen(vectors, 10)
    check_gaussian(fitted_gaussian(tmp_path, pipeline.autoencoder, seen), pipeline.autoencoder, seen)


def test_rows_that_were_seen_are_those_that_the_pipeline_names(tmp_path):
    vectors = make_vectors(20)
    assert read_holdout_every(tmp_path) is None and torch.equal(take_seen(vectors, None), vectors)
    assert torch.equal(take_seen(vectors, 10), vectors[split_rows(20, 10)[0]])
    (tmp_path / "train_config.json").write_text('{"autoencoder": {"holdout_every": 1}}')
    with pytest.raises(
        ValueError, match=r"expected a whole number of at least 2 as autoencoder.holdout_every, found 1"
    ):
        read_holdout_every(tmp_path)


def check_gaussian(gaussian, autoencoder, vectors):
    latents = autoencoder.scale_latents(autoencoder.encode_rows(vectors))
    scale = latents.std()
    draws = gaussian.sample(20_000, torch.Generator().manual_seed(0)) / scale
    expected = latents / scale
    # 20 000 draws: standard errors of 0.01 and below.
    torch.testing.assert_close(draws.flatten(1).T.cov(), expected.flatten(1).T.cov(), atol=0.1, rtol=0.03)
    torch.testing.assert_close(draws.mean(0), expected.mean(0), atol=0.05, rtol=0)


def test_card_shows_the_verdict(run):
    folder, metrics = run
    card = (folder / "pipeline" / "README.md").read_text()
    assert metrics["verdict"] in card and "| generated | 5 |" in card


def test_same_recipe_again_skips_what_is_complete(run):
    folder, metrics = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    lines = []
    assert run_recipe(recipe(), folder, lines.append).to_dict()["groups"] == metrics["groups"]
    assert len(lines) == len(STAGES) and all("skipped" in line for line in lines)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.usefixtures("no_figures")
def test_removed_stage_is_made_again_alike(tiny_run_copy, tmp_path):
    expected = load_file(tiny_run_copy / "generated" / "00003.safetensors")
    (tiny_run_copy / "generated").rename(tmp_path / "generated")
    run_recipe(tiny_recipe(), tiny_run_copy)
    found = load_file(tiny_run_copy / "generated" / "00003.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("no_figures")
def test_an_evaluation_reads_the_layout_once(run, pdiff, tmp_path, monkeypatch):
    read, names = folder_module.read_json, []
    monkeypatch.setattr(folder_module, "read_json", lambda path: names.append(Path(path).name) or read(path))
    code, _, err = pdiff("evaluate", run[0], "--out", tmp_path / "report")
    assert code == 0, err
    assert names == ["layout.json"]


def test_another_recipe_in_the_folder_is_refused_and_touches_nothing(run):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=r"diffusion.steps is 20, expected 21"):
        run_recipe(recipe("diffusion.steps=21"), folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="but is no run of pdiff"):
        run_recipe(recipe(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_more_denoising_steps_than_timesteps_leave_no_trace(tmp_path):
    changed = recipe("diffusion.num_train_timesteps=10", "generate.num_inference_steps=11")
    with pytest.raises(ValueError, match="generate: num_inference_steps must be at most 10"):
        run_recipe(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_images_leave_no_trace(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        run_recipe(recipe(f"task.dataset={tmp_path / 'nowhere'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


KILLED = """
import os, signal, sys
import yaml
from pdiff_hf.runs.recipe import Recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.training import loop

stage, folder, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
original = loop.GlobalBatch
count = {"autoencoder": 0, "diffusion": 0}

def batch(num_rows, *args, **kwargs):
    current = "autoencoder" if num_rows == 36 else "diffusion"
    count[current] += 1
    if current == stage and count[current] == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(num_rows, *args, **kwargs)

loop.GlobalBatch = batch
run_recipe(Recipe.model_validate(yaml.safe_load(open(sys.argv[4]))), folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_kill_9_in_a_training_stage_and_resume_ends_with_the_same_bits(tmp_path, stage):
    wanted = recipe("autoencoder.checkpointing_steps=4", "diffusion.checkpointing_steps=4")
    run_recipe(wanted, tmp_path / "straight")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    arguments = [sys.executable, "-c", KILLED, stage, str(tmp_path / "killed"), "7", str(tmp_path / "recipe.yaml")]
    assert subprocess.run(arguments, capture_output=True).returncode == -signal.SIGKILL
    folder = {"autoencoder": "autoencoder", "diffusion": "pipeline"}[stage]
    assert (tmp_path / "killed" / folder / "checkpoint-4").is_dir()
    run_recipe(wanted, tmp_path / "killed")
    for name in ("autoencoder", "pipeline/unet"):
        weights = [
            load_file(tmp_path / run / name / "diffusion_pytorch_model.safetensors") for run in ("straight", "killed")
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in os.listdir(tmp_path / "straight" / "generated"):
        files = [(tmp_path / run / "generated" / name).read_bytes() for run in ("straight", "killed")]
        assert files[0] == files[1]


@pytest.mark.slow
def test_kill_9_while_collecting_leaves_a_run_that_can_go_on(tmp_path):
    wanted = recipe("collect.num_checkpoints=4000")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    code = (
        "import sys, yaml; from pdiff_hf.runs.recipe import Recipe; from pdiff_hf.runs.stages import run_recipe;"
        "run_recipe(Recipe.model_validate(yaml.safe_load(open(sys.argv[1]))), sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")])
    partial = tmp_path / "run" / ".dataset.partial" / "runs" / ".000000.partial" / "recording.arrow"
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert partial.exists() and not (tmp_path / "run" / "dataset").exists()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json"), sort_keys=False))
    assert run_recipe(recipe(), tmp_path / "run").original.n == 40


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_evaluate_like_one(run, tmp_path):
    folder, metrics = run
    code, out = launch_two("-m", "pdiff_hf", "evaluate", folder, "--out", tmp_path / "report", "--json")
    assert code == 0, out
    assert out.count('"schema": 1') == 1, "one process speaks"
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert set(found["groups"]) == set(metrics["groups"])
    for name, group in found["groups"].items():
        expected = metrics["groups"][name]
        for key, value in expected["test_accuracy"].items():
            assert group["test_accuracy"][key] == pytest.approx(value), (name, key)
        assert group["selected"] == expected["selected"]
    assert found["verdict"] == metrics["verdict"]
