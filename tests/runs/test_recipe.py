import pytest
import torch
import yaml

from pdiff_hf.runs.recipe import BaseModelConfig, load_recipe, load_training, recorded_section
from pdiff_hf.runs.recipe_parts import named_recipes


def test_every_shipped_recipe_is_valid():
    assert {"digits-mlp", "digits-convnet", "resnet18-last-norms"} <= set(named_recipes())
    for name in named_recipes():
        assert load_recipe(name).collect.rows_per_run > 0


def test_overrides_are_yaml_values():
    recipe = load_recipe(
        "digits-mlp", ["collect.select=[0.*, 4.*]", "diffusion.steps=7", "autoencoder.learning_rate=1e-3"]
    )
    assert recipe.collect.select == ["0.*", "4.*"]
    assert recipe.diffusion.steps == 7 and recipe.autoencoder.learning_rate == 1e-3


def test_seed_reaches_every_section_but_the_image_splits():
    recipe = load_recipe("digits-mlp", ["diffusion.seed=9"], seed=3)
    assert recipe.base_training.seed == recipe.autoencoder.seed == recipe.generate.seed == recipe.evaluate.seed == 3
    assert recipe.diffusion.seed == 9 and recipe.task.seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collect.num_checkpoint=5", "unknown key 'collect.num_checkpoint'.*'collect.num_checkpoints'"),
        ("difusion.steps=5", "unknown key 'difusion'.*'diffusion'"),
        ("diffusion.steps=many", "'diffusion.steps': expected a valid integer.*found 'many'"),
        ("diffusion.steps=0", "'diffusion.steps': expected greater than or equal to 1, found 0"),
        ("generate.scheduler=euler", "'generate.scheduler': expected 'dpmsolver.*found 'euler'"),
        ("collect.select=3", "'collect.select': expected a valid string, found 3"),
        ("autoencoder=5", "'autoencoder': expected .*found 5"),
        ("collect.num_checkpoints", "expected section.key=value"),
        ("seed.x=1", "'seed.x=1'|'seed'"),
        ("task.dataset=[", "not valid YAML"),
        ("autoencoder.preset=fasst", "'autoencoder.preset': expected 'fast' or 'paper', found 'fasst'"),
        ("autoencoder.preset=[fast]", "'autoencoder.preset': expected 'fast' or 'paper'"),
        ("base_model.library=transformers", "'base_model': .*needs kwargs"),
    ],
)
def test_bad_overrides_are_one_line_that_names_the_key(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe("digits-mlp", [override])
    assert "\n" not in str(caught.value)


def test_missing_key_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"task": {}, "base_model": {"library": "timm"}}))
    with pytest.raises(ValueError, match=r"'base_model.name' is missing"):
        load_recipe(tmp_path / "mine.yaml")


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(ValueError, match="digits-mlp"):
        load_recipe("digits-lstm")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_file_that_is_no_recipe(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine.yaml"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_section_that_was_edited_into_a_value_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("generate: 5\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml: expected keys and values in 'generate', found 5"):
        recorded_section(tmp_path, "generate")


def test_training_sections_alone(tmp_path):
    recipe = load_training(tmp_path, ["autoencoder.kind=pca"], seed=4)
    assert recipe.dataset == str(tmp_path)
    assert recipe.autoencoder.kind == "pca" and recipe.autoencoder.seed == recipe.diffusion.seed == 4
    with pytest.raises(ValueError, match="unknown key 'collect'"):
        load_training(tmp_path, ["collect.select=all"])


def test_transformers_network_starts_from_pretrained_weights(tmp_path):
    config = {"model_type": "resnet", "depths": [1], "hidden_sizes": [8], "embedding_size": 8, "layer_type": "basic"}
    base = {"library": "transformers", "name": "ResNetForImageClassification"}
    source = BaseModelConfig(**base, kwargs={"config": {**config, "num_labels": 7}}).build()
    source.save_pretrained(tmp_path / "source")
    wanted = {**base, "kwargs": {"config": {**config, "num_labels": 3}}}
    model = BaseModelConfig(**wanted, pretrained=str(tmp_path / "source")).build()
    assert not model.training and model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(model.state_dict()[stem], source.state_dict()[stem])
    with pytest.raises(ValueError, match=r"no weights under .*nowhere") as caught:
        BaseModelConfig(**wanted, pretrained=str(tmp_path / "nowhere")).build()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"base_model.kwargs.pretrained=true"):
        load_recipe("resnet18-last-norms", ["base_model.pretrained=microsoft/resnet-18"]).base_model.build()
