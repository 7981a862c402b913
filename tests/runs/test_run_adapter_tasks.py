"""A run whose networks are adapters of a convolutional network, for many tasks."""

import pytest
import timm
import torch

from pdiff_hf import ParameterDataset
from pdiff_hf.pipelines.network_folder import load_generated
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.stages import run_recipe

RECIPE = """
num_classes: 10
task: {dataset: digits}
base_model:
  library: timm
  name: test_efficientnet
  kwargs: {in_chans: 1, num_classes: 2}
  adapter:
    peft_type: LORA
    r: 2
    lora_alpha: 4
    target_modules: [blocks.4.0.conv_pw, blocks.4.0.conv_pwl]
    modules_to_save: [classifier]
base_training: {epochs: 1, learning_rate: 5.0e-3, train_batch_size: 100}
collect: {kind: tasks, select: adapter, num_classes: 10, seen: 8, validation: 1, unseen: 2}
autoencoder: {kind: pca, latent_channels: 4, allow_poor_reconstruction: true}
diffusion: {steps: 20}
generate: {num_samples: 2, num_inference_steps: 3}
evaluate: {rivals: [], fine_tune: false}
"""
MERGES = {"merge_nearest_svd", "merge_weighted_svd", "merge_ridge_svd", "merge_ties", "merge_dare"}


@pytest.mark.slow
def test_adapters_of_convolutions_are_made_for_unseen_tasks_beside_merges_of_seen_ones(tmp_path):
    torch.manual_seed(1)
    torch.save(timm.create_model("test_efficientnet", in_chans=1).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "adapters.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "adapters.yaml", [f"base_model.pretrained={tmp_path / 'weights.pth'}"])
    metrics = run_recipe(recipe, tmp_path / "run")
    dataset = ParameterDataset(tmp_path / "run" / "dataset")
    assert all("lora_" in name or "modules_to_save" in name for name in dataset.layout.names)
    assert metrics.tasks.num_unseen == 4 and MERGES <= metrics.tasks.of_role("weights").keys()
    report = (tmp_path / "run" / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in MERGES)
    # Statistics of norm layers are those of the base, whatever was trained.
    state, source = dataset.base_model.build().state_dict(), torch.load(tmp_path / "weights.pth")
    for name, tensor in source.items():
        if "running_" in name:
            assert torch.equal(state[f"base_model.model.{name}"], tensor)
    generated = load_generated(tmp_path / "run" / "generated", dataset.layout)
    assert len(generated) == 8 and bool(torch.isfinite(generated[:]).all())
