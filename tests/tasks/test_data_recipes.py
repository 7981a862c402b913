"""Every data recipe on a few examples of the schema that the dataset has on the Hub: columns, classes, splits."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pdiff_hf.runs.recipe import load_recipe
from pdiff_hf.runs.recipe_parts import find_part, part_names
from pdiff_hf.strict_yaml import read_mapping
from pdiff_hf.tasks.auto import load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
IMAGENET = (0.485, 0.456, 0.406)

GREY, SMALL, STL = [("L", 28, 28)], [("RGB", 32, 32)], [("RGB", 96, 96)]
PHOTOGRAPHS = [("RGB", 60, 45), ("RGB", 40, 55), ("RGB", 48, 48)]
# Some of the pets and of ImageNet are stored in other modes.
MIXED = [*PHOTOGRAPHS, ("L", 50, 40), ("P", 40, 50), ("RGBA", 44, 44), ("CMYK", 52, 40)]
# Of every dataset: splits, columns that are no labels, label columns with their numbers of classes, and its images.
SCHEMAS = {
    "mnist": (("train", "test"), ("image",), {"label": 10}, GREY),
    "fashion_mnist": (("train", "test"), ("image",), {"label": 10}, GREY),
    "cifar10": (("train", "test"), ("img",), {"label": 10}, SMALL),
    "cifar100": (("train", "test"), ("img",), {"fine_label": 100, "coarse_label": 20}, SMALL),
    "stl10": (("train", "test"), ("image",), {"label": 10}, STL),
    "flowers102": (("train", "validation", "test"), ("image",), {"label": 102}, PHOTOGRAPHS),
    "oxford_iiit_pet": (("train", "test"), ("image", "image_id"), {"label": 37, "label_cat_dog": 2}, MIXED),
    "food101": (("train", "validation"), ("image",), {"label": 101}, PHOTOGRAPHS),
    "imagenet1k": (("train", "validation", "test"), ("image",), {"label": 1000}, MIXED),
    "sst2": (("train", "validation", "test"), ("idx", "sentence"), {"label": 2}, None),
    "ag_news": (("train", "test"), ("text",), {"label": 4}, None),
}
# Splits whose labels are a secret, -1 in every row.
UNLABELLED = {("imagenet1k", "test"), ("sst2", "test")}
# Images that are normalised by their own statistics; photographs by those of the network's timm family.
OWN_MEANS = {
    "mnist": (0.1307,),
    "fashion_mnist": (0.2860,),
    "cifar10": (0.4914, 0.4822, 0.4465),
    "cifar100": (0.5071, 0.4865, 0.4409),
}
IMAGES = [name for name, (*_, images) in SCHEMAS.items() if images]
TEXTS = [name for name, (*_, images) in SCHEMAS.items() if not images]


def encode(mode, width, height):
    image = Image.effect_noise((width, height), 60).convert("RGB" if mode == "RGBA" else mode)
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_rows(name, split):
    """Two rows of every class, in columns and features as on the Hub."""
    _, columns, classes, modes = SCHEMAS[name]
    num_rows = 2 * next(iter(classes.values()))
    images = [encode(*mode) for mode in modes or []]
    values, features = {}, {}
    for column in columns:
        if column in ("image", "img"):
            values[column], features[column] = [images[i % len(images)] for i in range(num_rows)], datasets.Image()
        elif column == "idx":
            values[column], features[column] = list(range(num_rows)), datasets.Value("int32")
        else:
            texts = [f"row {i} of class {i % 2} in {split}" for i in range(num_rows)]
            values[column], features[column] = texts, datasets.Value("string")
    for column, size in classes.items():
        is_secret = (name, split) in UNLABELLED
        values[column] = [-1 if is_secret else i % size for i in range(num_rows)]
        features[column] = datasets.ClassLabel(names=[f"{column} {i}" for i in range(size)])
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


@pytest.fixture
def copy_of(tmp_path):
    """Makes a local copy of a dataset: Parquet files in the folder `data`, as on the Hub."""

    def make(name):
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        for split in SCHEMAS[name][0]:
            make_rows(name, split).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return make


def load(name, folder, *overrides):
    network = "resnet18" if name in IMAGES else "bert_tiny"
    # Of two rows of each class, one is for training.
    size = next(iter(SCHEMAS[name][2].values()))
    overrides = (f"task.dataset={folder}", *([] if name == "flowers102" else [f"task.val_size={size}"]), *overrides)
    recipe = load_recipe(f"{network}-last_norms-{name}", overrides)
    return load_task(recipe.task, recipe.base_model.reference())


def test_every_data_recipe_has_a_schema_and_names_its_source():
    assert {*SCHEMAS, "digits"} == set(part_names("data set"))
    for name in SCHEMAS:
        dataset = read_mapping(find_part(name, "data set"))["task"]["dataset"]
        assert f"https://huggingface.co/datasets/{dataset}" in find_part(name, "data set").read_text("utf-8")


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_the_hubs_schema(copy_of, monkeypatch, name):
    # Images are decoded when they are asked for only.
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", 0)
    task = load(name, copy_of(name))
    _, _, classes, modes = SCHEMAS[name]
    column, size = next(iter(classes.items()))
    assert task.class_names == [f"{column} {i}" for i in range(size)]
    assert task.num_classes == read_mapping(find_part(name, "data set"))["num_classes"]
    found = task.describe()
    is_divided = name != "flowers102"
    expected = {"num_train": size if is_divided else 2 * size, "num_val": size if is_divided else 2 * size}
    assert {key: found[key] for key in (*expected, "num_test")} == {**expected, "num_test": 2 * size}

    pixels = modes[0][1] if modes[0][1] <= 32 else 224
    channels = 1 if modes is GREY else 3
    images, labels = next(task.batches("test", len(modes) + 1))
    assert images.shape == (len(modes) + 1, channels, pixels, pixels)
    assert torch.isfinite(images).all() and images.std() > 0.1
    assert labels.max() < size
    assert found["mean"] == pytest.approx(OWN_MEANS.get(name, IMAGENET))
    assert found["crop_pct"] == (1.0 if name in OWN_MEANS else 0.95)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_the_hubs_schema(copy_of, name):
    task = load(name, copy_of(name), "task.max_length=12")
    ids, labels = task.arrays("test")
    size = SCHEMAS[name][2]["label"]
    assert ids.shape == (2 * size, 12) and ids.dtype == torch.int64
    assert labels.bincount().tolist() == [2] * size
    # The name of the split is no word of the train texts.
    assert task.tokenizer.decode(ids[1], skip_special_tokens=True) == "row 1 of class 1 in"


@pytest.mark.parametrize("name", SCHEMAS)
def test_wrong_column_and_missing_split_are_named_in_one_line(copy_of, name):
    folder, key = copy_of(name), "image_column" if name in IMAGES else "text_column"
    with pytest.raises(ValueError, match=rf"expected columns 'other' and .* name yours with {key}") as column:
        load(name, folder, f"task.{key}=other")
    label = next(iter(SCHEMAS[name][2]))
    with pytest.raises(ValueError, match=r"expected columns .* and 'class' in split") as label_column:
        load(name, folder, "task.label_column=class")
    assert f"'{label}'" in str(label_column.value)
    split = "test" if "validation" not in SCHEMAS[name][0] or name == "flowers102" else "validation"
    (folder / "data" / f"{split}-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=rf"expected split '{split}' in .*; give train_split") as missing:
        load(name, folder)
    assert not any("\n" in str(error.value) for error in (column, label_column, missing))


def test_command_line_says_so_in_one_line(pdiff, copy_of, tmp_path):
    options = ("--set", f"task.dataset={copy_of('cifar100')}", "--set", "task.label_column=label")
    code, _, error = pdiff("collect", "resnet18-last_norms-cifar100", "--out", tmp_path / "dataset", *options)
    assert code == 2
    # Before it, datasets shows the progress of writing the copy.
    assert "'fine_label', 'coarse_label'" in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "dataset").exists()


def test_copy_of_a_whole_repository_with_its_configuration_in_a_folder(copy_of):
    folder = copy_of("mnist")
    (folder / "data").rename(folder / "mnist")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert load("mnist", folder).describe()["num_test"] == 20
    (folder / "other").mkdir()
    make_rows("mnist", "train").to_parquet(folder / "other" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"expected one configuration .* found \['mnist', 'other'\]"):
        load("mnist", folder)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real image data beside the repository is not here")
@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist"])
def test_local_copies_are_taken_as_they_are(name):
    task = load_task(load_recipe(f"convnet3-all-{name}", [f"task.dataset={SHARED / name}"]).task)
    images, labels = task.arrays("test")
    assert images.shape[1:] == ((3, 32, 32) if name == "cifar10" else (1, 28, 28))
    assert labels.bincount().tolist() == [200] * 10
    # Normalised by their own statistics.
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=0.03)
    np.testing.assert_allclose(images.std((0, 2, 3)), 1, atol=0.03)
