"""Adapters are merged in every way, and the report says which merge is best."""

import copy
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("peft")

from adapters.adapter_cases import GOOD, load_base, make_adapter, make_base
from factories import without_figures
from pdiff_hf import ParameterDataset
from pdiff_hf.cli import main
from pdiff_hf.data.vectors import split_rows
from pdiff_hf.peft_model import lora_layers
from pdiff_hf.results.metrics import Metrics
from pdiff_hf.tasks.evaluators import require_task
from pdiff_hf.training.rows import read_holdout_every

pytestmark = pytest.mark.slow

NUM = 6
SMALL = ("--set", "diffusion.steps=20", "--set", "autoencoder.kind=pca", "--set", "autoencoder.latent_channels=2")


def make_images(folder):
    generator = np.random.default_rng(0)
    for split, number in (("train", 24), ("test", 12)):
        for label in range(5):
            os.makedirs(folder / split / str(label))
            for index in range(number):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{index}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run of adapters with heads of a small vision transformer."""
    folder = tmp_path_factory.mktemp("merges")
    base = make_base(folder, "vit")
    for number in range(NUM):
        make_adapter(folder / "adapters" / str(number), base, GOOD["timm-vit"][1](), number)
    make_images(folder / "images")
    task = json.dumps({"dataset": "images/", "image_size": 32})
    commands = (
        ("import", "adapters", "--peft", "--base", base, "--out", "ds", "--task", task),
        ("train", "ds", "--out", "run", *SMALL),
        ("generate", "run/pipeline", "--out", "run/generated", "--num-samples", 3, "--num-inference-steps", 5),
        ("evaluate", "run", "--dataset", "ds"),
    )
    with pytest.MonkeyPatch.context() as patch, without_figures():
        patch.chdir(folder)
        for command in commands:
            patch.setattr(sys, "argv", ["pdiff", *map(str, command)])
            with pytest.raises(SystemExit) as ended:
                main()
                sys.exit(0)
            assert not ended.value.code, command
    return folder


def exact_mean(dataset, base, rows):
    """The base with the mean of what peft says that adapters add, and with the mean head."""
    model, network = dataset.base_model.build(), load_base(base)
    layers, total = lora_layers(model), {}
    for row in rows:
        dataset.layout.load_into(model, row)
        for name, layer in layers.items():
            delta = layer.get_delta_weight("default") / len(rows)
            total[name] = total.get(name, 0) + delta.detach()
    for name, delta in total.items():
        network.get_submodule(name.removeprefix("base_model.model.")).weight.data += delta
    dataset.layout.load_into(model, rows.mean(0))
    network.head = copy.deepcopy(model.base_model.model.head.modules_to_save["default"])
    return network.eval()


def test_the_report_says_which_merge_is_best(run):
    metrics = Metrics.read(run / "run/report/metrics.json")
    names = ["mean_delta_exact", "mean_delta_svd", "mean_factors", "peft_linear", "peft_ties", "peft_ties_svd"]
    names += ["peft_dare_linear", "peft_magnitude_prune"]
    assert list(metrics.merges) == names
    for name, merge in metrics.merges.items():
        assert merge.identity_error < 1e-4 and merge.reload_error < 1e-4 and merge.num_adapters == merge_count(metrics)
        assert 0 <= merge.test_accuracy <= 1 and merge.test_ci95[0] <= merge.test_accuracy <= merge.test_ci95[1]
        assert merge.difference.difference == pytest.approx(
            metrics.generated.test_accuracy.mean - merge.test_accuracy, abs=1e-6
        )
        # All but the exact one are groups, with all that groups have.
        assert (name in metrics.groups) == (name != "mean_delta_exact")
        if name in metrics.groups:
            assert metrics.groups[name].role == "average" and metrics.groups[name].n == 1
            assert metrics.groups[name].selected.test_accuracy == merge.test_accuracy
        if name.startswith("peft_"):
            assert merge.chosen["weight"] > 0 and "its head is lost" in merge.note and merge.identity_error_as_is > 0.1
    errors = {name: merge.delta_error for name, merge in metrics.merges.items()}
    assert (
        errors["mean_delta_exact"] == 0 and min(errors[name] for name in names[1:]) == errors["mean_delta_svd"] > 0.1
    )
    best = metrics.best_merge()
    assert metrics.merges[best].val_accuracy == max(merge.val_accuracy for merge in metrics.merges.values())
    report = (run / "run/report/report.md").read_text(encoding="utf-8")
    assert "Which merge is best for these adapters?" in report and f"({best}): test accuracy" in report
    assert all(f"| {name} |" in report for name in names)
    assert "Which merge is best for these adapters?" in (run / "run/report/report.html").read_text(encoding="utf-8")
    # Merges of full checkpoints are no merges of factors.
    assert not {"ties", "dare", "slerp", "model_stock"} & set(metrics.groups)


def merge_count(metrics):
    """Held-out rows of other runs are not merged."""
    return metrics.groups["seen"].n if "seen" in metrics.groups else metrics.original.n


def test_the_exact_mean_is_that_of_the_weights_that_peft_adds(run, monkeypatch):
    dataset, metrics = ParameterDataset(run / "ds"), Metrics.read(run / "run/report/metrics.json")
    rows = dataset.vectors()
    if "seen" in metrics.groups:
        rows = rows[split_rows(len(rows), read_holdout_every(run / "run/pipeline"))[0]]
    network = exact_mean(dataset, run / "vit", rows)
    monkeypatch.chdir(run)
    images, labels = require_task(dataset).arrays("test")
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean().item()
    assert metrics.merges["mean_delta_exact"].test_accuracy == pytest.approx(right, abs=1e-6)
