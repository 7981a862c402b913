"""Whether the report of a run says if its networks are the distribution, and what its denoiser has learned."""

import shutil

import pytest
import torch

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.autocorrelation import RunMemory
from pdiff_hf.files import read_json, write_json
from pdiff_hf.models.auto import load_autoencoder
from pdiff_hf.pipelines.network_folder import write_networks
from pdiff_hf.runs.evaluate import evaluate_run
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.recipe import EvaluateConfig

pytestmark = pytest.mark.usefixtures("no_figures")
DENOISER = {
    "kept_step": 20,
    "validate": "between",
    "curve": {"0": 1.0},
    "held_out": {"between": {"loss": 0.5, "n": 4}},
}


def evaluate(folder):
    return evaluate_run(Run(folder), EvaluateConfig(fine_tune=False))


def test_networks_are_compared_with_originals_that_were_not_seen(tiny_run_copy):
    dataset = ParameterDataset(tiny_run_copy / "dataset")
    write_json(tiny_run_copy / "pipeline" / "denoiser.json", DENOISER)
    metrics = evaluate(tiny_run_copy)
    assert metrics.denoiser.held_out["between"].loss == 0.5 and metrics.denoiser.curve == {"0": 1.0}
    assert list(metrics.distribution) == [
        "original",
        "generated",
        "gaussian",
        "gaussian_latents",
        "noise_0.05",
        "noise_0.1",
    ]
    assert all(found.n == 5 for found in metrics.distribution.values())
    normalizer = load_autoencoder(tiny_run_copy / "pipeline" / "autoencoder").normalizer
    memory = RunMemory.measure(dataset.vectors(), dataset.order, normalizer)
    assert metrics.distribution["original"].n_effective == memory.effective_size < 10
    assert metrics.yardstick > metrics.original.similarity.l2_nearest_mean
    assert "## Is it the distribution?" in (tiny_run_copy / "report" / "report.md").read_text(encoding="utf-8")


def test_copies_of_originals_are_found_by_whether_these_were_seen(tiny_run_copy):
    dataset = ParameterDataset(tiny_run_copy / "dataset")
    index = read_json(tiny_run_copy / "generated" / "index.json")
    index = {key: value for key, value in index.items() if key not in ("files", "schema")}
    ratios = []
    for rows in split_rows(len(dataset), 10):
        shutil.rmtree(tiny_run_copy / "generated")
        vectors = dataset.vectors(rows=rows[:4])
        vectors = vectors + 1e-7 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
        write_networks(tiny_run_copy / "generated", dataset.layout, map(dataset.layout.unflatten, vectors), index)
        ratios.append(evaluate(tiny_run_copy).distribution["generated"].nearest_train_ratio)
    of_seen, of_unseen = ratios
    assert of_seen < 0.5 and of_unseen > 2


def test_a_pipeline_that_does_not_say_what_it_saw_is_not_tested(tiny_run_copy):
    for name in ("train_config.json", "denoiser.json"):
        (tiny_run_copy / "pipeline" / name).unlink()
    metrics = evaluate(tiny_run_copy)
    assert metrics.distribution == {} and metrics.denoiser is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_config.json", {"autoencoder": {"holdout_every": 1}}, r"least 2 as autoencoder.holdout_every, found 1"),
        ("train_config.json", {"autoencoder": 3}, r"expected 'autoencoder' of another type, found 3"),
        ("denoiser.json", {"held_out": {"between": {"loss": "low"}}}, r"held_out.between.loss: .*found 'low'"),
        ("denoiser.json", [], r"its content: .*found \[\]"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tiny_run_copy, file, content, message):
    write_json(tiny_run_copy / "pipeline" / file, content)
    before = (tiny_run_copy / "report" / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=f"{file}: .*{message}"):
        evaluate(tiny_run_copy)
    assert (tiny_run_copy / "report" / "metrics.json").read_bytes() == before
