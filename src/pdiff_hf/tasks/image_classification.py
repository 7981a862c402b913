"""Image classification on any Hugging Face image dataset, with timm's transforms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_data_config

from ..base_model import BaseModel
from ..wording import setting
from .config import ImageClassificationConfig
from .sources import check_fingerprint, load_splits
from .splits import Split, check_columns, class_labels, divide
from .task import Task

# Images of another dataset that are kept in memory.
MAX_OTHERS = 10_000


class ImageClassification(Task):
    """Images and labels in three disjoint splits.

    The embedded `digits` are scikit-learn's 8x8 digits as `(B, 1, 8, 8)` float, pixel / 16, not normalised further:
    500 test, 300 val and 997 train images. All other images get timm's evaluation transform: resize, centre crop,
    normalise.

    Args:
        config ([`ImageClassificationConfig`]): Where the images are and how they are prepared.
        base_model ([`BaseModel`], *optional*): A timm base model; its family's image size, mean, std, interpolation
            and crop take the place of what the config leaves `null`.

    Raises:
        ValueError: the dataset, a split or a column is missing, a file is damaged, or labels are out of range.
    """

    noun = "images"

    def __init__(self, config: ImageClassificationConfig, base_model: BaseModel | None = None):
        super().__init__()
        if config.dataset == "digits":
            self._load_digits(config)
        else:
            self._load_images(config, base_model)

    @property
    def is_augmented(self) -> bool:
        """Whether training images are cropped, flipped and jittered anew in every epoch."""
        return self.config.augment != "none"

    @property
    def bytes_per_example(self) -> int:
        """Memory of one prepared image, float32."""
        return 4 * self.config.in_chans * self.config.image_size**2

    def _load_digits(self, config: ImageClassificationConfig) -> None:
        fixed = {"image_size": 8, "in_chans": 1, "augment": "none"}
        fixed |= dict.fromkeys(("config_name", "val_split", "mean", "std", "interpolation", "crop_pct"))
        found = {key: getattr(config, key) for key in fixed}
        if wrong := {key: value for key, value in found.items() if value not in (None, fixed[key])}:
            raise ValueError(
                f"expected the embedded digits, 1x8x8 and pixel / 16, found {wrong} in task; leave these keys out"
            )
        self.config = config.model_copy(update={**fixed, "val_size": config.val_size or 300})
        digits = load_digits()
        labels = digits.target.astype(np.int64)
        self.class_names = [str(name) for name in digits.target_names]
        carved = self.config.model_copy(update={"test_split": None, "test_size": config.test_size or 500})
        images = torch.from_numpy(digits.images).float().div(16)[:, None]
        for split, (_, index) in divide(carved, {config.train_split: labels}).items():
            self._arrays[split] = images[index]
            self._labels[split] = torch.from_numpy(labels[index])

    def _load_images(self, config: ImageClassificationConfig, base_model: BaseModel | None) -> None:
        # 1. Rows and labels as they are stored
        stored = load_splits(config, self.noun)
        if config.image_column is None:
            config = config.model_copy(update={"image_column": _image_column(stored[config.train_split])})
        check_columns(stored, {key: getattr(config, key) for key in ("image_column", "label_column")})
        stored = select_images(stored, config.image_column, config.label_column)
        labels, self.class_names = class_labels(stored, config.train_split, config.label_column)
        config = config.model_copy(update={"dataset_fingerprint": check_fingerprint(config, stored, labels)})

        # 2. Three disjoint splits
        for split, (name, index) in divide(config, labels).items():
            self._rows[split] = stored[name].select(index)
            self._labels[split] = torch.from_numpy(labels[name][index])

        # 3. What the configuration leaves open about the images
        network = _inputs_of(base_model)
        in_chans = config.in_chans or network["in_chans"] or 3
        family = timm.get_pretrained_cfg(base_model.name) if base_model and base_model.library == "timm" else None
        defaults = resolve_data_config({"in_chans": in_chans}, pretrained_cfg=family.to_dict() if family else None)
        image_size = config.image_size or network["image_size"] or (defaults["input_size"][-1] if family else None)
        update: dict[str, Any] = {
            "in_chans": in_chans,
            "image_size": image_size or min(self._rows["train"][0][config.image_column].size),
            "interpolation": config.interpolation or defaults["interpolation"],
            "crop_pct": config.crop_pct or (defaults["crop_pct"] if family else 1.0),
        }
        for key in ("mean", "std"):
            values = getattr(config, key)
            if values is None:
                values = defaults[key] if in_chans == 3 else (sum(defaults[key]) / len(defaults[key]),)
            if len(values) != in_chans:
                raise ValueError(
                    f"expected {in_chans} values in {key}, one a channel, found {values}; correct "
                    f"{setting(f'task.{key}')}"
                )
            update[key] = tuple(values)
        self.config = config.model_copy(update=update)

    def other_images(self, dataset: str, num: int = MAX_OTHERS) -> torch.Tensor:
        """Up to `num` images of another dataset, `(N, C, H, W)`, drawn at random and prepared as those of the task.

        Args:
            dataset (`str`): Folder or Hub id; images of its split `train`, with or without labels.

        Raises:
            ValueError: there is no such dataset, or no one column of images in it.
        """
        update = dict.fromkeys(("config_name", "dataset_fingerprint", "image_column", "val_split", "test_split"))
        update |= {"dataset": dataset, "train_split": "train", "test_size": 1}
        config = self.config.model_copy(update=update)
        rows = load_splits(config, self.noun)["train"]
        rows, column = rows.select(np.random.default_rng(0).permutation(len(rows))[:num]), _image_column(rows)
        mode = "L" if self.config.in_chans == 1 else "RGB"
        transform = self._transform(is_training=False)
        images = TransformedImages(
            rows.cast_column(column, datasets.Image()), column, torch.zeros(len(rows)), mode, transform, None
        )
        return torch.stack([images[index][0] for index in range(len(images))])

    def _transform(self, is_training: bool) -> Callable:
        config = self.config
        # The embedded digits are not normalised.
        options = {"mean": config.mean or (0.0,), "std": config.std or (1.0,), "crop_pct": config.crop_pct or 1.0}
        size = (config.in_chans, config.image_size, config.image_size)
        return create_transform(
            size, is_training=is_training, interpolation=config.interpolation or "bilinear", **options
        )

    def _prepare(self, split: Split) -> torch.Tensor:
        return torch.cat([images for images, _ in self._load(split)])

    def batches(
        self,
        split: Split = "train",
        batch_size: int = 128,
        seed: int = 0,
        epoch: int = 0,
        among: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As [`Task.batches`], with any number of workers."""
        indices = self.batch_indices(split, batch_size, seed, epoch, among)
        if split == "train" and self.is_augmented:
            yield from self._load(split, indices, seed=(seed, epoch))
        elif self.fits_in_memory(split):
            yield from super().batches(split, batch_size, seed, epoch, among)
        else:
            yield from self._load(split, indices)

    def _load(
        self, split: Split, indices: list[torch.Tensor] | None = None, seed: tuple[int, ...] | None = None
    ) -> torch.utils.data.DataLoader:
        """Batches of prepared images, in the order of the rows by default; augmented with a seed."""
        config, transform = self.config, self._transform(is_training=seed is not None)
        mode = "L" if config.in_chans == 1 else "RGB"
        images = TransformedImages(self._rows[split], config.image_column, self._labels[split], mode, transform, seed)
        batches = [index.tolist() for index in indices or torch.arange(len(images)).split(256)]
        return torch.utils.data.DataLoader(
            images,
            batch_sampler=batches,
            num_workers=config.num_workers,
            # Without one of its own, a loader draws from the global generator.
            generator=torch.Generator(),
        )


def _image_column(rows: datasets.Dataset) -> str:
    """The one column of images; `ValueError` where there is none, or where there are several."""
    found = [name for name, feature in rows.features.items() if _is_encoded(feature)]
    if len(found) != 1:
        raise ValueError(
            f"expected one column with images, found {found or 'none'} among {rows.column_names}; name it with "
            f"{setting('task.image_column')}"
        )
    return found[0]


def _inputs_of(base_model: BaseModel | None) -> dict[str, int | None]:
    """Channels and pixels of the images of a network, `None` where its reference does not say it."""
    known: dict[str, Any] = {}
    if base_model is not None and base_model.library == "timm":
        known = {"in_chans": base_model.kwargs.get("in_chans"), "image_size": base_model.kwargs.get("img_size")}
    elif base_model is not None and base_model.library == "transformers":
        config = base_model.kwargs["config"]
        known = {"in_chans": config.get("num_channels"), "image_size": config.get("image_size")}
    return {key: value if isinstance(value := known.get(key), int) else None for key in ("in_chans", "image_size")}


def select_images(splits: datasets.DatasetDict, image_column: str, label_column: str) -> datasets.DatasetDict:
    """Keeps the two columns of every split, images as `datasets.Image`.

    Raises:
        ValueError: the column holds something else.
    """
    for name, rows in splits.items():
        feature = rows.features[image_column]
        if not _is_encoded(feature):
            raise ValueError(
                f"expected images in column {image_column!r}, found {feature}; give {setting('task.image_column')}"
            )
        if not isinstance(feature, datasets.Image):
            splits[name] = rows.cast_column(image_column, datasets.Image())
    return splits.select_columns(list(dict.fromkeys((image_column, label_column))))


def _is_encoded(feature: object) -> bool:
    """Whether a column holds images, or bytes that may be images."""
    is_binary = feature == datasets.Value("binary") or (isinstance(feature, dict) and "bytes" in feature)
    return is_binary or isinstance(feature, datasets.Image)


@dataclass
class TransformedImages(torch.utils.data.Dataset):
    """Images of a column, decoded in a PIL `mode` and transformed to `(C, H, W)`, with their labels.

    With a `seed`, the randomness of an image depends on it and on the position only.
    """

    rows: datasets.Dataset
    column: str
    labels: torch.Tensor
    mode: str
    transform: Callable[[Image.Image], torch.Tensor]
    seed: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            image = self.rows[index][self.column].convert(self.mode)
        except OSError as error:
            raise ValueError(
                f"expected an image in column {self.column!r}, found bytes in row {index} that cannot be decoded "
                f"({error}); repair or drop the row"
            ) from error
        if self.seed is None:
            return self.transform(image), self.labels[index]
        # timm's transforms draw from two global generators, which are put back.
        seed = int(np.random.SeedSequence([*self.seed, index]).generate_state(1)[0])
        python_state = random.getstate()
        with torch.random.fork_rng(devices=()):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            transformed = self.transform(image)
        random.setstate(python_state)
        return transformed, self.labels[index]
