import pytest
import yaml

from pdiff_hf.runs.composition import list_parts, read_recipe
from pdiff_hf.runs.recipe import load_recipe, load_training
from pdiff_hf.runs.recipe_parts import find_part, part_names
from pdiff_hf.strict_yaml import read_mapping


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_name_of_parts_is_composed_of_them():
    recipe = load_recipe("resnet18-last_norms-cifar10")
    assert recipe.base_model.name == "resnet18" and recipe.base_model.kwargs == {"num_classes": 10, "in_chans": 3}
    assert recipe.collect.select == "last_norms:2"
    assert recipe.task.dataset == "uoft-cs/cifar10" and recipe.task.image_size == 32


@pytest.mark.parametrize(
    ("name", "kwargs", "epochs", "latent"),
    [
        ("digits-mlp", {"in_features": 64, "hidden": [32, 16], "num_classes": 10}, 150, (32, 1)),
        ("digits-convnet", {"in_chans": 1, "channels": [16, 32, 32], "num_classes": 10}, 60, (32, 1)),
    ],
)
def test_digits_recipes_keep_their_values(name, kwargs, epochs, latent):
    recipe = load_recipe(name)
    assert recipe.base_model.kwargs == kwargs
    assert (recipe.base_training.epochs, recipe.base_training.learning_rate) == (epochs, 5e-3)
    assert recipe.base_training.train_batch_size == recipe.collect.train_batch_size == 64
    assert (recipe.task.dataset, recipe.collect.select, recipe.collect.num_checkpoints) == ("digits", "all", 300)
    assert (recipe.autoencoder.latent_channels, recipe.autoencoder.latent_length) == latent
    assert recipe.diffusion.steps == 500


def test_resnet18_recipe_keeps_its_values():
    recipe = load_recipe("resnet18-last-norms", ["task.dataset=nowhere"])
    assert recipe.base_model.kwargs == {"num_classes": 10}
    assert (recipe.task.image_size, recipe.task.crop_pct, recipe.task.in_chans) == (32, 1.0, None)
    assert (recipe.base_training.epochs, recipe.collect.select) == (10, "last_norms:2")


def test_later_layers_win_over_earlier_ones(tmp_path):
    write(tmp_path / "part.yaml", {"base_training": {"epochs": 3, "learning_rate": 0.25}, "paper": {"seed": 5}})
    own = {"compose": ["part.yaml", "mlp3", "digits", "all"], "base_training": {"epochs": 4}}
    source = write(tmp_path / "mine.yaml", own)
    recipe = load_recipe(source)
    # The data set says 60 epochs, the own part 3, the recipe itself 4; only the part says another learning rate.
    assert (recipe.base_training.epochs, recipe.base_training.learning_rate) == (4, 0.25)
    assert recipe.base_training.train_batch_size == 64
    paper = load_recipe(source, preset="paper")
    assert (paper.base_training.epochs, paper.base_training.learning_rate, paper.seed) == (4, 5e-4, 5)
    smoke = load_recipe(source, ["base_training.epochs=2"], preset="paper", profile="cpu-smoke")
    assert smoke.base_training.epochs == 2 and smoke.autoencoder.preset == "paper"
    assert smoke.diffusion.steps == 20 and smoke.collect.num_checkpoints == 12


def test_an_override_replaces_a_whole_section():
    recipe = load_recipe("resnet18-last_norms-cifar10", ["base_model.kwargs={num_classes: 7}"])
    assert recipe.base_model.kwargs == {"num_classes": 7}


def test_own_recipe_sets_facts_for_a_shipped_network(tmp_path):
    own = {"compose": ["vit_tiny", "head"], "num_classes": 7, "task": {"dataset": "PATH", "image_size": 48}}
    recipe = load_recipe(write(tmp_path / "mine.yaml", own))
    assert recipe.base_model.kwargs == {"num_classes": 7, "img_size": 48, "patch_size": 4}
    large = load_recipe(tmp_path / "mine.yaml", ["task.image_size=96"])
    assert large.base_model.kwargs == {"num_classes": 7, "img_size": 96, "pretrained": True}
    assert load_recipe(tmp_path / "mine.yaml", ["num_classes=3"]).base_model.kwargs["num_classes"] == 3


def test_small_images_are_enlarged_to_what_the_network_needs(tmp_path):
    own = {"compose": ["vit_base", "head"], "num_classes": 10, "task": {"dataset": "PATH", "image_size": 28}}
    recipe = load_recipe(write(tmp_path / "mine.yaml", own))
    assert recipe.task.image_size == recipe.base_model.kwargs["img_size"] == 32
    with pytest.raises(ValueError, match="vit_base needs images of at least 32 pixels, found 28"):
        load_recipe(tmp_path / "mine.yaml", ["task.image_size=28"])


def test_smoke_profile_makes_photographs_small_and_takes_no_pretrained_weights(tmp_path):
    own = {"compose": ["vit_base", "head"], "num_classes": 200, "task": {"dataset": "PATH", "image_size": 224}}
    source = write(tmp_path / "mine.yaml", own)
    assert load_recipe(source).base_model.kwargs["pretrained"] is True
    recipe = load_recipe(source, profile="cpu-smoke")
    assert recipe.base_model.kwargs == {"num_classes": 200, "img_size": 32, "patch_size": 8}
    # At least one image of each class, or the splits cannot be stratified.
    assert recipe.task.train_size == recipe.task.val_size == recipe.task.test_size == 200


def test_pretrained_imagenet_networks_are_not_trained_first():
    for preset in (None, "paper"):
        assert load_recipe("resnet18-last_norms-imagenet1k", preset=preset).base_training.epochs == 0
        assert load_recipe("hf_resnet18-last_norms-imagenet1k", preset=preset).base_training.epochs == 0
        assert load_recipe("resnet18-all-imagenet1k", preset=preset).base_training.epochs == 0
        assert load_recipe("resnet_mini-all-imagenet1k", preset=preset).base_training.epochs == 40
        assert load_recipe("digits-mlp", preset=preset).base_training.epochs == 150
        assert load_recipe("mlp3-all-mnist", preset=preset).base_training.epochs == (40 if preset is None else 10)
    scratch = load_recipe("resnet18-last_norms-imagenet1k", ["base_model.kwargs.pretrained=false"])
    assert scratch.base_training.epochs == 10


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_preset_reaches_both_stages(name):
    recipe = load_recipe("resnet18-last_norms-cifar10", preset=name)
    for section in (recipe.autoencoder, recipe.diffusion):
        preset = section.PRESETS[name]
        assert section.preset == name and len(preset) > 6
        assert {key: getattr(section, key) for key in preset} == preset


def test_paper_preset_is_the_papers_recipe():
    # The recipe's own values are replaced.
    recipe = load_recipe("digits-mlp", preset="paper")
    assert (recipe.collect.num_checkpoints, recipe.collect.learning_rate) == (300, None)
    assert (recipe.base_training.learning_rate, recipe.base_training.train_batch_size) == (5e-4, 128)
    assert recipe.autoencoder.latent_channels * recipe.autoencoder.latent_length == 768
    subset = load_recipe("resnet18-last_norms-cifar10", preset="paper")
    assert subset.autoencoder.latent_channels * subset.autoencoder.latent_length == 128
    assert (subset.diffusion.steps, subset.diffusion.num_train_timesteps) == (1000, 1000)
    assert (subset.generate.scheduler, subset.generate.num_inference_steps) == ("ddpm", 1000)


def test_fast_preset_keeps_what_the_recipe_says():
    assert load_recipe("digits-mlp", preset="fast") == load_recipe("digits-mlp")


def test_training_takes_preset_and_profile(tmp_path):
    recipe = load_training(tmp_path, ["diffusion.steps=9"], preset="paper", profile="cpu-smoke")
    assert recipe.autoencoder.preset == recipe.diffusion.preset == "paper"
    assert (recipe.autoencoder.steps, recipe.diffusion.steps) == (20, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18-last_norms-cifar10", "no network 'resnt18'; the nearest is 'resnet18'"),
        ("resnet18-last_norm-cifar10", "no selection 'last_norm'; the nearest is 'last_norms'"),
        ("resnet18-last_norms-cifar11", "no data set 'cifar11'; the nearest is 'cifar10'"),
        ("digits-mpl", "no recipe 'digits-mpl' .the nearest is 'digits-mlp'"),
        ("mlp3-last_norms-digits", "'last_norms' does not fit mlp3; expected one of all, head"),
        ("vit_tiny-last_conv-cifar10", "last_conv does not fit vit_tiny, which names no 'last_conv'"),
        ("convnext_tiny-head-digits", "convnext_tiny needs images of at least 32 pixels, found 8 by digits"),
        ("bert_tiny-head-cifar10", "bert_tiny is for text_classification, found image_classification by cifar10"),
    ],
)
def test_wrong_names_are_one_line_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compose": ["resnet18", "last_norm"]}, "no part 'last_norm'; the nearest is 'last_norms'"),
        ({"compose": ["resnet18", "resnet50"]}, "expected one network, found 'resnet50' as a second one"),
        ({"compose": "resnet18"}, "'compose': expected a list"),
        ({"compose": ["missing.yaml"]}, "missing.yaml cannot be read"),
        (
            {"compose": ["resnet18"], "num_clases": 3, "task": {}},
            "'num_clases'; the nearest valid key is 'num_classes'",
        ),
        ({"compose": ["resnet18"], "task": {"dataset": "${num_clases}"}}, "nearest is '.{num_classes}'"),
        ({"compose": ["vit_tiny"], "task": {}, "collect": {"select": "${last_conv}"}}, "names no 'last_conv'"),
    ],
)
def test_wrong_own_files_are_one_line(tmp_path, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(write(tmp_path / "mine.yaml", values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("preset", "papr"), ("profile", "cpu-smok")])
def test_unknown_overlay_is_named_with_the_nearest(option, value):
    with pytest.raises(ValueError, match=f"no {option} '{value}'; the nearest is '(paper|cpu-smoke)'"):
        load_recipe("digits-mlp", **{option: value})


def test_lists_say_which_selections_fit():
    networks = {network["name"]: network for network in list_parts()["networks"]}
    assert networks["mlp3"]["selections"] == ["all", "head"]
    assert "bn16_17" in networks["resnet18"]["selections"] and "bn16_17" not in networks["resnet50"]["selections"]
    assert networks["resnet18"]["num_parameters"] == 11_181_642


def test_parts_names_are_unique_and_every_part_describes_itself():
    names = [name for axis in ("network", "selection", "data set") for name in part_names(axis)]
    assert len(set(names)) == len(names) and not any("-" in name for name in names)
    for kind, entries in list_parts().items():
        assert entries and all(len(entry["description"]) > 10 for entry in entries), kind


def test_composed_values_have_no_placeholder_left():
    for network in part_names("network"):
        if "task_kind" not in read_mapping(find_part(network, "network")):
            assert "${" not in yaml.safe_dump(read_recipe(f"{network}-all-cifar10", profile="cpu-smoke"))
