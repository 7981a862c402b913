from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pdiff_hf.base_model import BaseModel
from pdiff_hf.tasks.image_classification import ImageClassification, ImageClassificationConfig

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_rows(num_rows, seed, size=8, label="label", labels=None):
    """Images whose first pixel counts, so that every row is unique and can be recognised."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 255, (num_rows, size, size), dtype=np.uint8)
    pixels[:, 0, 0] = np.arange(num_rows)
    pixels[:, 0, 1] = seed
    columns = {
        "image": [Image.fromarray(image) for image in pixels],
        label: labels or [i % 3 for i in range(num_rows)],
    }
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=["ape", "bee", "cat"])})
    return datasets.Dataset.from_dict(columns, features=features if labels is None else None)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    make_rows(60, seed=1).to_parquet(path / "train-00000-of-00001.parquet")
    make_rows(30, seed=2).to_parquet(path / "test-00000-of-00001.parquet")
    return path


def make_task(folder, base_model=None, **values):
    return ImageClassification(ImageClassificationConfig(dataset=str(folder), **values), base_model)


def test_digits_are_pixels_over_16_in_the_documented_splits():
    task = ImageClassification(ImageClassificationConfig())
    images = {split: task.arrays(split)[0] for split in ("train", "val", "test")}
    assert [len(images[split]) for split in images] == [997, 300, 500]
    assert all(x.shape[1:] == (1, 8, 8) and x.dtype == torch.float32 for x in images.values())
    assert all(torch.equal(x * 16, (x * 16).round()) and x.max() == 1 for x in images.values())
    assert task.num_classes == 10
    for split in images:
        counts = task.arrays(split)[1].bincount()
        assert counts.max() - counts.min() <= 0.1 * counts.max(), "the splits are stratified"


def test_digits_splits_are_disjoint_and_complete():
    task = ImageClassification(ImageClassificationConfig())
    splits = [{image.numpy().tobytes() for image in task.arrays(split)[0]} for split in ("train", "val", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 1797


@pytest.mark.parametrize("values", [{"image_size": 28}, {"in_chans": 3}, {"augment": "timm"}, {"mean": (0.5,)}])
def test_digits_refuse_other_preprocessing(values):
    with pytest.raises(ValueError, match=f"expected the embedded digits.*{next(iter(values))}.*leave these keys out"):
        ImageClassification(ImageClassificationConfig(**values))


def identity(task, split):
    """The pixels that tell rows apart, as they were before timm's normalisation."""
    images = task.arrays(split)[0]
    pixels = images[:, 0, 0, :2] * task.config.std[0] + task.config.mean[0]
    return {tuple(row) for row in (pixels * 255).round().int().tolist()}


def test_parquet_splits_are_disjoint_stratified_and_seeded(folder):
    task = make_task(folder, val_size=12)
    train, val, test = (identity(task, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (48, 12, 30)
    assert not train & val
    assert {seed for _, seed in train | val} == {1}
    assert {seed for _, seed in test} == {2}
    assert task.arrays("val")[1].bincount().tolist() == [4, 4, 4]
    assert task.class_names == ["ape", "bee", "cat"]
    assert identity(make_task(folder, val_size=12), "val") == val
    assert identity(make_task(folder, val_size=12, seed=1), "val") != val


def test_test_images_can_be_taken_from_train(folder):
    task = make_task(folder, test_split=None, test_size=15, val_size=9, train_size=30)
    train, val, test = (identity(task, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (30, 9, 15)
    assert len(train | val | test) == 54


def test_shards_in_a_data_folder_and_named_val_split(tmp_path):
    data = tmp_path / "images" / "data"
    data.mkdir(parents=True)
    for index, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-0", "test-0")):
        make_rows(30, seed=index).to_parquet(data / f"{name}.parquet")
    task = make_task(data.parent, val_split="validation")
    assert {seed for _, seed in identity(task, "train")} == {0, 1}
    assert {seed for _, seed in identity(task, "val")} == {2}
    assert task.describe()["num_train"] == 60


def test_imagefolder(tmp_path):
    for split, name in (("train", "ape"), ("train", "bee"), ("test", "ape"), ("test", "bee")):
        path = tmp_path / "images" / split / name
        path.mkdir(parents=True)
        for index, image in enumerate(make_rows(10, seed=0)["image"]):
            image.save(path / f"{index}.png")
    task = make_task(tmp_path / "images")
    assert task.class_names == ["ape", "bee"]
    assert task.arrays("val")[0].shape == (2, 3, 8, 8)


def test_parquet_without_hugging_face_metadata(folder):
    for file in folder.iterdir():
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    task = make_task(folder, in_chans=1)
    assert task.arrays("train")[0].shape == (54, 1, 8, 8)
    assert task.class_names == ["0", "1", "2"]


def test_grey_images_become_rgb_with_the_timm_familys_normalisation(folder):
    task = make_task(folder, BaseModel.timm("vit_tiny_patch16_224"), image_size=16)
    images, _ = task.arrays("test")
    assert images.shape == (30, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    assert task.config.mean == task.config.std == (0.5, 0.5, 0.5)
    assert task.config.crop_pct == 0.9
    assert make_task(folder, BaseModel.timm("resnet18")).config.image_size == 224
    again = ImageClassification(task.config).arrays("test")[0]
    assert torch.equal(images, again), "the resolved config alone gives the same images"


def test_batches_cover_the_split_in_an_order_of_seed_and_epoch(folder):
    task = make_task(folder, in_chans=1, val_size=12)
    epoch = torch.cat([images for images, _ in task.batches("train", 16, seed=0, epoch=0)])
    assert len({image.numpy().tobytes() for image in epoch}) == 48
    assert torch.equal(epoch, torch.cat([images for images, _ in task.batches("train", 16, seed=0, epoch=0)]))
    for order in ({"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 0}):
        assert not torch.equal(epoch, torch.cat([images for images, _ in task.batches("train", 16, **order)]))
    assert [len(labels) for _, labels in task.batches("train", 20)] == [20, 20]
    assert [len(labels) for _, labels in task.batches("train", 100)] == [48]


def test_augmentation_is_seeded_and_leaves_the_global_generators_alone(folder):
    task = make_task(folder, augment="timm")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, labels = next(task.batches("train", 16, seed=0, epoch=0))
    assert torch.equal(torch.rand(1), expected)
    again, _ = next(task.batches("train", 16, seed=0, epoch=0))
    assert torch.equal(first, again)
    plain = make_task(folder)
    images, plain_labels = next(plain.batches("train", 16, seed=0, epoch=0))
    assert torch.equal(labels, plain_labels)
    assert not torch.equal(first, images)
    assert torch.equal(task.arrays("train")[0], plain.arrays("train")[0])


def test_images_too_large_for_memory_give_the_same_batches(folder, monkeypatch):
    expected = [images for images, _ in make_task(folder).batches("train", 16)]
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", 0)
    task = make_task(folder)
    assert all(torch.equal(a, b) for (a, _), b in zip(task.batches("train", 16), expected, strict=True))
    assert not task._arrays


def test_images_too_large_as_floats_are_kept_as_pixels_and_give_the_same_batches(folder, monkeypatch):
    expected = [images for images, _ in make_task(folder).batches("train", 16)]
    # A CPU does not normalise them again in every epoch.
    assert make_task(folder).keep("train", torch.device("cpu")).dtype == torch.float32
    num_values = 54 * 3 * 8 * 8
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", num_values)
    task = make_task(folder)
    examples = task.examples("train", "cpu")
    assert examples.is_kept and task.keep("train", torch.device("cpu")).dtype == torch.uint8
    # Decoded once.
    task._rows["train"] = None
    for _ in range(2):
        found = [images for images, _ in task.batches("train", 16)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", num_values - 1)
    assert not make_task(folder).examples("train", "cpu").is_kept


def test_images_too_large_for_the_machine_are_kept_on_an_accelerator(folder, pretended, monkeypatch):
    expected = [images for images, _ in make_task(folder).batches("train", 16)]
    monkeypatch.setattr("pdiff_hf.tasks.task.MAX_CACHE_BYTES", 0)
    monkeypatch.setattr("pdiff_hf.tasks.image_classification.BLOCK_IMAGES", 20)
    task = make_task(folder)
    examples = task.examples("train", "pretend")
    assert examples.is_kept and not task._kept
    found = [examples.inputs(*batch).cpu() for batch in examples.batches(16)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test_split": "validation"}, r"expected split 'validation'.*found \['test', 'train'\].*test_split"),
        ({"test_split": "train"}, "must be disjoint"),
        ({"test_split": None}, "expected test_split or test_size, found neither; give test_split or test_size"),
        ({"image_column": "img"}, r"expected columns 'img' and 'label'.*found \['image', 'label'\].*image_column"),
        ({"image_column": "label", "label_column": "image"}, "expected images in column 'label'"),
        ({"label_column": "image"}, "expected class numbers in column 'image'"),
        ({"val_size": 60}, "expected val_size that divides 60 examples.*found 60"),
        ({"mean": (0.5,)}, "expected 3 values in mean, .* correct mean$"),
        ({"config_name": "plain"}, "expected no config_name"),
    ],
)
def test_bad_configuration_names_what_was_found(folder, values, message):
    with pytest.raises(ValueError, match=message) as error:
        make_task(folder, **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(folder, label):
    make_rows(30, seed=2, labels=[0, 1, 2] * 9 + [0, 1, label]).to_parquet(folder / "test-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=rf"labels in \[0, 3\) in column 'label', found {label} in row 29 of split 'test'"
    ):
        make_task(folder)


def test_missing_folder_and_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder.*nowhere does not exist.*correct dataset$"):
        make_task(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected images or Parquet files in it, found none") as error:
        make_task(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_parquet_is_named(folder):
    file = folder / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name} is truncated or damaged") as error:
        make_task(folder)
    assert "\n" not in str(error.value)


def test_image_that_cannot_be_decoded_is_named(folder):
    columns = {"image": [{"bytes": b"no image", "path": None}] * 30, "label": [0, 1, 2] * 10}
    datasets.Dataset.from_dict(columns, features=make_rows(3, 0).features).to_parquet(
        folder / "test-00000-of-00001.parquet"
    )
    task = make_task(folder, image_size=8)
    with pytest.raises(ValueError, match="bytes in row 0 that cannot be decoded"):
        task.arrays("test")


def test_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="datset"):
        ImageClassificationConfig(datset="digits")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real image data beside the repository is not here")
def test_real_parquet_images():
    task = make_task(SHARED / "fashion_mnist", BaseModel.timm("resnet18"), image_size=32, train_size=100)
    sizes = {key: value for key, value in task.describe().items() if key.startswith("num_")}
    assert sizes == {"num_train": 100, "num_val": 1000, "num_test": 2000, "num_classes": 10}
    images, labels = task.arrays("train")
    assert images.shape == (100, 3, 32, 32)
    assert labels.bincount().tolist() == [10] * 10
