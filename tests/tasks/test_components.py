"""Heads on principal components of the features of a pretrained network."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from pdiff_hf.data.dataset import ParameterDataset
from pdiff_hf.networks import PrincipalComponents, timm_with_head
from pdiff_hf.runs.recipe import BaseModelConfig, load_recipe
from pdiff_hf.runs.stages import run_recipe
from pdiff_hf.tasks.auto import load_task
from pdiff_hf.tasks.components import fit_components

NAME = "pdiff_hf.tasks.networks:timm_with_head"
KWARGS = {"model": "test_efficientnet", "image_size": 32, "in_chans": 1, "num_components": 8, "hidden": [4]}
RECIPE = """
compose: [head, digits]
base_model:
  library: import
  name: pdiff_hf.tasks.networks:timm_with_head
  kwargs: {model: test_efficientnet, image_size: 32, in_chans: 1, num_components: 8, hidden: [4], num_classes: 2}
base_training: {epochs: 1, train_batch_size: 128}
collect: {kind: tasks, num_classes: 10, seen: 8, validation: 1, unseen: 1}
autoencoder: {kind: functional, latent_channels: 2, steps: 5, task_loss: 1.0, allow_poor_reconstruction: true}
diffusion: {steps: 5}
generate: {num_samples: 2}
evaluate: {hypernetwork_steps: 5}
"""


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("test_efficientnet", in_chans=1)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return network, tmp_path / "weights.safetensors"


def test_components_are_uncorrelated_and_of_unit_variance():
    torch.manual_seed(0)
    features = torch.randn(200, 6) @ torch.randn(6, 6) + 3
    layer = PrincipalComponents(6, 4)
    layer.fit(features)
    found = layer(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.T.cov(), torch.eye(4), atol=1e-4, rtol=0)
    # The first has the largest variance of all directions.
    variance = torch.linalg.eigvalsh(features.T.cov())[-1]
    assert (1 / layer.components[:, 0].norm() ** 2).item() == pytest.approx(variance.item(), rel=1e-4)
    assert not list(layer.parameters())


def test_features_that_do_not_vary_so_much_are_refused():
    flat = torch.randn(50, 2) @ torch.randn(2, 6)
    with pytest.raises(ValueError, match="vary in 4 directions"):
        PrincipalComponents(6, 4).fit(flat)
    with pytest.raises(ValueError, match="num_components from 1 to 6"):
        PrincipalComponents(6, 7)


def test_they_are_fitted_to_training_examples_of_the_task():
    task = load_task({"dataset": "digits"})
    model = timm_with_head(**KWARGS).eval()
    fit_components(task, model)
    inputs = task.arrays("train")[0][:2000]
    with torch.no_grad():
        found = model.head[0](model.features(inputs))
    torch.testing.assert_close(found.mean(0), torch.zeros(8), atol=0.1, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(8), atol=0.1, rtol=0)


def test_weights_of_a_file_are_those_of_the_network(weights):
    network, file = weights
    config = BaseModelConfig(library="import", name=NAME, kwargs={**KWARGS, "pretrained": True}, pretrained=str(file))
    images = torch.randn(2, 1, 32, 32)
    network.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(config.build().features(images), network.eval()(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained": "nowhere.safetensors"}, "found none at nowhere.safetensors"),
        ({"kwargs": {**KWARGS, "model": "test_vit", "image_size": None}}, "belong to another network"),
        ({"kwargs": {**KWARGS, "model": "no_such_network"}}, "timm .* has no model 'no_such_network'"),
        ({"kwargs": {**KWARGS, "num_components": 10**6}}, "num_components from 1 to"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(weights, change, message):
    given = {"library": "import", "name": NAME, "kwargs": KWARGS, "pretrained": str(weights[1]), **change}
    with pytest.raises(ValueError, match=message) as raised:
        BaseModelConfig(**given).build()
    assert "\n" not in str(raised.value)


def test_a_run_generates_heads_of_one_pretrained_network(weights, no_figures, tmp_path):
    (tmp_path / "heads.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "heads.yaml", [f"base_model.pretrained={weights[1]}"])
    metrics = run_recipe(recipe, tmp_path / "run")
    assert metrics.num_parameters == 8 * 4 + 4 + 4 * 2 + 2 and metrics.tasks.num_unseen == 2
    dataset = ParameterDataset(tmp_path / "run" / "dataset")
    assert all(name.startswith("head.") for name in dataset.layout.names)
    # Components are of the base model, fitted once for all.
    task, built = load_task({"dataset": "digits"}), dataset.base_model.build().eval()
    with torch.no_grad():
        found = built.head[0](built.features(task.arrays("train")[0]))
    torch.testing.assert_close(found.std(0), torch.ones(8), atol=0.15, rtol=0)


def test_untrained_features_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "heads.yaml").write_text(RECIPE)
    with pytest.raises(ValueError, match="expected pretrained weights"):
        run_recipe(load_recipe(tmp_path / "heads.yaml"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
