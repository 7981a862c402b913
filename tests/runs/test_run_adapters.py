"""A run whose networks are adapters of one base: everything that a run has, and merges."""

import json

import pytest

peft = pytest.importorskip("peft")

from factories import without_figures  # noqa: E402
from pdiff_hf import ParameterDataset, PDiffPipeline  # noqa: E402
from pdiff_hf.pipelines.network_folder import load_generated  # noqa: E402
from pdiff_hf.results.metrics import Metrics  # noqa: E402
from pdiff_hf.runs.recipe import load_recipe  # noqa: E402
from pdiff_hf.runs.stages import run_recipe  # noqa: E402
from small_texts import make_reviews  # noqa: E402

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "reviews").mkdir()
    for split, (rows, seed) in {"train": (160, 0), "test": (64, 1)}.items():
        make_reviews(rows, seed).to_parquet(folder / "reviews" / f"{split}.parquet")
    settings = [
        f"task.dataset={folder / 'reviews'}",
        "task.text_column=text",
        "task.label_column=label",
        "task.test_split=test",
        "task.train_size=null",
        "task.val_size=32",
        "task.test_size=null",
        "task.vocab_size=64",
        "task.max_length=16",
        "collect.select=adapter",
        f"base_model.adapter={json.dumps(ADAPTER)}",
        "base_model.kwargs.config.initializer_range=0.3",
        "autoencoder.kind=pca",
    ]
    recipe = load_recipe("bert_tiny-head-sst2", settings, profile="cpu-smoke")
    with without_figures():
        return folder / "run", run_recipe(recipe, folder / "run")


def test_a_run_collects_generates_and_judges_adapters(adapter_run):
    folder, metrics = adapter_run
    dataset = ParameterDataset(folder / "dataset")
    assert all("lora_" in name or "modules_to_save" in name for name in dataset.layout.names)
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline")
    model = pipe.build_model(load_generated(folder / "generated", pipe.layout)[:][0])
    assert isinstance(model, peft.PeftModel)
    assert (folder / "generated" / "00000" / "adapter_config.json").is_file()
    assert metrics.groups["generated"].n == 8


def test_its_report_says_which_merge_is_best(adapter_run):
    folder, _ = adapter_run
    metrics = Metrics.read(folder / "report" / "metrics.json")
    merges = metrics.merges
    assert merges["mean_delta_exact"].delta_error == 0 < merges["mean_delta_svd"].delta_error
    assert merges["mean_delta_svd"].reload_error < 1e-5 and merges["mean_delta_svd"].identity_error < 1e-5
    assert {"mean_delta_svd", "mean_factors", "peft_linear", "peft_ties"} <= metrics.groups.keys()
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert f"({metrics.best_merge()})" in text and "| peft_linear |" in text
