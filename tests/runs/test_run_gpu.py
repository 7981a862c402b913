"""Runs on the accelerator that is there, against those on the CPU; elsewhere, of the CPU with itself."""

import pytest
import timm
import torch

from factories import tiny_recipe
from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.files import read_json
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.runs.stages import run_recipe

NETWORKS = {
    "resnet10t": ({}, "last_norms:2"),
    "vit_tiny_patch16_224": ({"img_size": 32, "patch_size": 8, "depth": 2}, "head"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_cpu(device, name):
    options, select = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).eval()
    layout = ParameterLayout.from_model(model, select)
    vectors = layout.flatten(model) + 0.1 * torch.randn(3, layout.num_parameters)
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    found, expected = (
        ParameterEvaluator(model, layout, images, labels, batch_size=10, device=where).logits(vectors)
        for where in (device, "cpu")
    )
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one.device.type == device.type
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_run_is_as_good_as_that_of_the_cpu(no_figures, tmp_path, monkeypatch):
    run_recipe(tiny_recipe(), tmp_path / "accelerator")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_recipe(tiny_recipe(), tmp_path / "cpu")
    folders = [tmp_path / name for name in ("accelerator", "cpu")]
    found, expected = (ParameterDataset(folder / "dataset").vectors(rows=slice(None)) for folder in folders)
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=1e-3)
    found, expected = (read_json(folder / "report" / "metrics.json")["groups"] for folder in folders)
    for name in ("original", "generated"):
        means = [groups[name]["test_accuracy"]["mean"] for groups in (found, expected)]
        assert means[0] == pytest.approx(means[1], abs=5e-4)
