"""Every network with every selection and data set: composed, validated, and built without memory for weights."""

import functools
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pdiff_hf.base_model import BaseModel
from pdiff_hf.data.order import RowOrder
from pdiff_hf.forward import forward_logits
from pdiff_hf.models.auto import AUTOENCODER, DENOISER
from pdiff_hf.runs.composition import list_parts
from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.recipe_parts import find_part, named_recipes, part_names
from pdiff_hf.runs.stages import check_training, planned_rows
from pdiff_hf.strict_yaml import read_mapping
from pdiff_hf.tasks.collect import check_collection

NETWORKS = {network["name"]: network for network in list_parts()["networks"]}
DATA = {name: read_mapping(find_part(name, "data set")) for name in part_names("data set")}


def fitting_pairs():
    for network, described in NETWORKS.items():
        values = read_mapping(find_part(network, "network"))
        min_image_size = max(part.get("min_image_size", 0) for part in (values, values.get("small_images", {})))
        for data, values in DATA.items():
            is_fitting = values["task"].get("kind", "image_classification") == described["task_kind"]
            # The embedded digits cannot be enlarged.
            if is_fitting and not (data == "digits" and min_image_size > 8):
                yield network, data


@functools.cache
def build(reference_json):
    values = json.loads(reference_json)
    with torch.device("meta"):
        return BaseModel.from_dict(values).build()


def build_on_meta(recipe):
    values = recipe.base_model.reference().to_dict()
    # Nothing is downloaded: without pretrained weights the architecture is the same.
    values["kwargs"].pop("pretrained", None)
    return build(json.dumps(values))


@functools.cache
def check_once(layout, num_rows, autoencoder_json, diffusion_json):
    autoencoder = AUTOENCODER.validate(json.loads(autoencoder_json))
    check_training(layout, RowOrder.of_runs(*num_rows), autoencoder, DENOISER.validate(json.loads(diffusion_json)))


@pytest.mark.parametrize(("network", "data"), list(fitting_pairs()))
def test_every_fitting_combination_can_start(network, data, tmp_path):
    for selection in NETWORKS[network]["selections"]:
        recipe = load_recipe(f"{network}-{selection}-{data}")
        model = build_on_meta(recipe)
        layout = check_collection(model, recipe.collect, tmp_path / "dataset")
        assert layout.num_parameters > 0
        num_rows = (recipe.collect.num_checkpoints,) * recipe.collect.runs
        stages = recipe.autoencoder.model_dump_json(), recipe.diffusion.model_dump_json()
        check_once(layout, num_rows, *stages)
        if selection == "all":
            parameters = {name for name, _ in model.named_parameters()}
            running = {name for name, _ in model.named_buffers() if "running" in name}
            assert parameters | running == set(layout.names)


@pytest.mark.parametrize(("network", "data"), list(fitting_pairs()))
def test_smoke_profile_composes_and_keeps_the_selection(network, data):
    for selection in NETWORKS[network]["selections"]:
        name = f"{network}-{selection}-{data}"
        recipe = load_recipe(name, profile="cpu-smoke")
        assert recipe.collect.select == load_recipe(name).collect.select
        assert recipe.task.train_size >= DATA[data]["num_classes"]
        assert "pretrained" not in recipe.base_model.kwargs and recipe.base_model.pretrained is None


@pytest.mark.parametrize("profile", [None, "cpu-smoke"])
@pytest.mark.parametrize("name", named_recipes())
def test_every_named_recipe_can_start(name, profile, tmp_path):
    recipe = load_recipe(name, profile=profile)
    layout = check_collection(build_on_meta(recipe), recipe.collect, tmp_path / "dataset")
    check_training(layout, planned_rows(recipe), recipe.autoencoder, recipe.diffusion)


@pytest.mark.parametrize(("network", "data"), list(fitting_pairs()))
def test_every_network_takes_the_inputs_and_has_their_classes(network, data):
    recipe = load_recipe(f"{network}-all-{data}")
    model = build_on_meta(recipe)
    if recipe.task.kind == "text_classification":
        # Attention looks at the values of its mask, which are none on the meta device.
        model = recipe.base_model.reference().build()
        inputs = torch.ones(2, recipe.task.max_length, dtype=torch.int64)
    else:
        size = recipe.task.image_size or DATA[data]["image_size"]
        channels = recipe.task.in_chans or DATA[data]["in_chans"]
        inputs = torch.zeros(2, channels, size, size, device="meta")
    assert forward_logits(model, inputs).shape == (2, DATA[data]["num_classes"])


@pytest.mark.parametrize("network", NETWORKS)
def test_documented_number_of_parameters(network):
    data = {"image_classification": "cifar10", "text_classification": "sst2"}[NETWORKS[network]["task_kind"]]
    recipe = load_recipe(f"{network}-all-{data}")
    found = sum(parameter.numel() for parameter in build_on_meta(recipe).parameters())
    assert found == NETWORKS[network]["num_parameters"]


def test_whole_networks_are_as_small_as_the_papers():
    for network in ("mlp3", "convnet3", "resnet_mini", "vit_mini", "convnext_mini"):
        assert 24_000 <= NETWORKS[network]["num_parameters"] <= 155_000


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    """Makes a folder of coloured noise with the columns, splits and classes of a data set; each class has its hue."""

    @functools.cache
    def make(data):
        values = DATA[data]
        task, num_classes = values["task"], values["num_classes"]
        folder = tmp_path_factory.mktemp(data)
        rng = np.random.default_rng(0)
        hues = rng.integers(40, 215, (num_classes, 3))
        for split in ("train", task.get("val_split"), task.get("test_split", "test")):
            if split is None:
                continue
            labels = np.arange(max(320, 4 * num_classes)) % num_classes
            noise = rng.integers(-40, 40, (len(labels), 16, 16, 3))
            arrays = (hues[labels][:, None, None] + noise).astype(np.uint8)
            rows = {
                task.get("image_column", "image"): [Image.fromarray(array) for array in arrays],
                task.get("label_column", "label"): labels,
            }
            names = [str(name) for name in range(num_classes)]
            features = datasets.Features(
                dict(zip(rows, (datasets.Image(), datasets.ClassLabel(names=names)), strict=True))
            )
            rows = datasets.Dataset.from_dict(rows, features=features)
            rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mlp3-all-cifar10",
        "convnet3-last_conv-cifar10",
        "resnet_mini-all-cifar10",
        "vit_mini-all-cifar10",
        "convnext_mini-head-cifar10",
        "resnet18-bn16_17-cifar10",
        "vit_tiny-last_norms-cifar10",
        "convnext_tiny-last_norms-cifar10",
        "hf_resnet18-last_norms-cifar10",
        "hf_vit_tiny-first_conv-cifar10",
        "hf_convnext_tiny-last_norms-cifar10",
    ],
)
def test_smoke_profile_runs_through(pdiff, tmp_path, images_of, name):
    images = images_of(name.rpartition("-")[2])
    options = ("--profile", "cpu-smoke", "--set", f"task.dataset={images}")
    code, out, err = pdiff("run", name, "--out", tmp_path / "run", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["groups"]["generated"]["n"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-mlp", "digits-convnet", "resnet_mini-all-digits", "vit_mini-head-digits"])
def test_smoke_profile_runs_on_embedded_images(pdiff, tmp_path, name):
    code, _, err = pdiff("run", name, "--out", tmp_path / "run", "--profile", "cpu-smoke")
    assert code == 0, err
