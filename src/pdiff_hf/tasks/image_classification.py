"""Image classification on any Hugging Face image dataset: three disjoint splits, timm's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import datasets
import numpy as np
import timm
import torch
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_data_config

from ..base_model import BaseModel
from .image_data import TransformedImages, check_columns, class_labels, load_splits, stratified_choice

Split = Literal["train", "val", "test"]

# Training images above this size are decoded again in every epoch; evaluation images are always kept.
MAX_CACHE_BYTES = 2 * 2**30


class TaskConfig(PydanticModel):
    """The recipe's `task` section. What is `null` is chosen by [`ImageClassification`]."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["image_classification"] = "image_classification"
    dataset: str = Field("digits", description="`digits` (embedded), a folder of Parquet files or images, or a Hub id")
    config_name: str | None = Field(None, description="configuration of a dataset on the Hub")
    train_split: str = "train"
    val_split: str | None = Field(None, description="null: `val_size` images of the train split")
    test_split: str | None = Field("test", description="null: `test_size` images of the train split")
    image_column: str = "image"
    label_column: str = "label"
    train_size: int | None = Field(None, ge=1, description="images used, all classes in proportion; null: all")
    val_size: int | None = Field(None, ge=1, description="null: a tenth of the train split, or the whole val split")
    test_size: int | None = Field(None, ge=1, description="null: all")
    seed: int = Field(0, ge=0, description="of the splits")
    image_size: int | None = Field(
        None, ge=1, description="pixels; null: the timm family's, else that of the first image"
    )
    in_chans: Literal[1, 3] | None = Field(None, description="null: 3, and 1 for digits")
    mean: tuple[float, ...] | None = Field(None, description="null: the timm family's, else ImageNet's")
    std: tuple[float, ...] | None = Field(None, description="null: the timm family's, else ImageNet's")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="null: the timm family's, else bicubic"
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share kept by the centre crop; null: the timm family's"
    )
    augment: Literal["none", "timm"] = Field("none", description="timm: random resized crop, flip and colour jitter")
    num_workers: int = Field(0, ge=0, description="processes that decode images")


class ImageClassification:
    """Images and labels in three disjoint splits.

    The embedded `digits` are scikit-learn's 8x8 digits as `(B, 1, 8, 8)` float, pixel / 16, not normalised further:
    500 test, 300 val and 997 train images. All other images get timm's evaluation transform: resize, centre crop,
    normalise.

    Args:
        config ([`TaskConfig`]): Where the images are and how they are prepared.
        base_model ([`BaseModel`], *optional*): A timm base model; its family's image size, mean, std, interpolation
            and crop take the place of what the config leaves `null`.

    Attributes:
        config ([`TaskConfig`]): The configuration with nothing about the images left open.
        class_names (`list[str]`): Names of the classes.

    Raises:
        ValueError: the dataset, a split or a column is missing, a file is damaged, or labels are out of range.
    """

    def __init__(self, config: TaskConfig, base_model: BaseModel | None = None):
        self._rows: dict[str, datasets.Dataset] = {}
        self._arrays: dict[str, torch.Tensor] = {}
        if config.dataset == "digits":
            self._load_digits(config)
        else:
            self._load_images(config, base_model)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def _load_digits(self, config: TaskConfig) -> None:
        fixed = {"image_size": 8, "in_chans": 1, "augment": "none"}
        fixed |= dict.fromkeys(("config_name", "val_split", "mean", "std", "interpolation", "crop_pct"))
        wrong = {
            key: getattr(config, key) for key, value in fixed.items() if getattr(config, key) not in (None, value)
        }
        if wrong:
            raise ValueError(
                f"expected the embedded digits, 1x8x8 and pixel / 16, found {wrong} in task; leave these keys out"
            )
        self.config = config.model_copy(update={**fixed, "val_size": config.val_size or 300})
        digits = load_digits()
        labels = digits.target.astype(np.int64)
        self.class_names = [str(name) for name in digits.target_names]
        test, rest = stratified_choice(
            np.arange(len(labels)), labels, config.test_size or 500, config.seed, "task.test_size"
        )
        indices = self._split_train(rest, labels) | {"test": test}
        images = torch.from_numpy(digits.images).float().div(16)[:, None]
        self._arrays = {split: images[index] for split, index in indices.items()}
        self._labels = {split: torch.from_numpy(labels[index]) for split, index in indices.items()}

    def _load_images(self, config: TaskConfig, base_model: BaseModel | None) -> None:
        # 1. Rows and labels as they are stored
        stored = load_splits(config.dataset, config.config_name)
        named = [name for name in (config.train_split, config.val_split, config.test_split) if name is not None]
        if missing := [name for name in named if name not in stored]:
            raise ValueError(
                f"expected split {missing[0]!r} in {config.dataset}, found {sorted(stored)}; set task.train_split and "
                "task.test_split (null with task.test_size takes that many images of the train split)"
            )
        if len(set(named)) < len(named):
            raise ValueError(f"expected different train, val and test splits, found {named}; they must be disjoint")
        if config.test_split is None and config.test_size is None:
            raise ValueError("expected task.test_split or task.test_size, found neither; set one of them")
        stored = check_columns(
            datasets.DatasetDict({name: stored[name] for name in named}), config.image_column, config.label_column
        )
        labels, self.class_names = class_labels(stored, config.train_split, config.label_column)

        # 2. Three disjoint splits
        self.config = config
        rest = np.arange(len(stored[config.train_split]))
        held_out: dict[str, tuple[str, np.ndarray]] = {}
        for split, name, size in (
            ("test", config.test_split, config.test_size),
            ("val", config.val_split, config.val_size),
        ):
            if name is not None:
                index = np.arange(len(stored[name]))
                if size is not None and size != len(index):
                    index, _ = stratified_choice(index, labels[name], size, config.seed, f"task.{split}_size")
                held_out[split] = (name, index)
            elif split == "test":
                index, rest = stratified_choice(rest, labels[config.train_split], size, config.seed, "task.test_size")
                held_out[split] = (config.train_split, index)
        trained = self._split_train(rest, labels[config.train_split], carve_val="val" not in held_out)
        parts = {split: (config.train_split, index) for split, index in trained.items()} | held_out
        self._rows = {split: stored[name].select(index) for split, (name, index) in parts.items()}
        self._labels = {split: torch.from_numpy(labels[name][index]) for split, (name, index) in parts.items()}

        # 3. What the configuration leaves open about the images
        in_chans = config.in_chans or 3
        family = timm.get_pretrained_cfg(base_model.name) if base_model and base_model.library == "timm" else None
        defaults = resolve_data_config({"in_chans": in_chans}, pretrained_cfg=family.to_dict() if family else None)
        image_size = config.image_size or (defaults["input_size"][-1] if family else None)
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
                    f"expected {in_chans} values in task.{key}, one a channel, found {values}; correct it"
                )
            update[key] = tuple(values)
        self.config = config.model_copy(update=update)

    def _split_train(self, indices: np.ndarray, labels: np.ndarray, carve_val: bool = True) -> dict[str, np.ndarray]:
        """Divides the images for training into train and, when asked for, val."""
        config, splits = self.config, {}
        if carve_val:
            val_size = config.val_size or len(indices) // 10
            splits["val"], indices = stratified_choice(indices, labels, val_size, config.seed, "task.val_size")
        if config.train_size is not None and config.train_size != len(indices):
            indices, _ = stratified_choice(indices, labels, config.train_size, config.seed, "task.train_size")
        return {"train": indices} | splits

    def arrays(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """All images of a split after the evaluation transform, kept in memory, and their labels.

        Args:
            split (`str`): `train`, `val` or `test`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: images `(N, C, H, W)` float32 and labels `(N,)` int64.
        """
        if split not in self._arrays:
            self._arrays[split] = torch.cat([images for images, _ in self._load(split, is_training=False)])
        return self._arrays[split], self._labels[split]

    def batch_indices(self, split: Split = "train", batch_size: int = 128, seed: int = 0, epoch: int = 0) -> list:
        """Positions of the images of every batch `(B,)`, shuffled by `(seed, epoch)`.

        An incomplete last batch is left out, unless it is the only one.
        """
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(self._labels[split])))
        return [batch for batch in order.split(batch_size) if len(batch) == min(batch_size, len(order))]

    def batches(
        self, split: Split = "train", batch_size: int = 128, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of shuffled batches, the same for the same `(seed, epoch)`, with any number of workers.

        Args:
            split (`str`, *optional*, defaults to `"train"`): `train`, `val` or `test`; only `train` is augmented.
            batch_size (`int`, *optional*, defaults to 128): Images in a batch.
            seed (`int`, *optional*, defaults to 0): Of the order and the augmentation.
            epoch (`int`, *optional*, defaults to 0): Every epoch has its own order and augmentation.

        Yields:
            `tuple[torch.Tensor, torch.Tensor]`: images `(B, C, H, W)` float32 and labels `(B,)` int64.
        """
        indices = self.batch_indices(split, batch_size, seed, epoch)
        if split == "train" and self.config.augment == "timm":
            yield from self._load(split, is_training=True, indices=indices, seed=(seed, epoch))
        elif self.fits_in_memory(split):
            images, labels = self.arrays(split)
            yield from ((images[index], labels[index]) for index in indices)
        else:
            yield from self._load(split, is_training=False, indices=indices)

    def fits_in_memory(self, split: Split) -> bool:
        """Whether the transformed images of a split take no more than `MAX_CACHE_BYTES`."""
        size = self.config.image_size
        return 4 * len(self._labels[split]) * self.config.in_chans * size * size <= MAX_CACHE_BYTES

    def describe(self) -> dict[str, Any]:
        """Everything that is needed to prepare other images in the same way, as JSON."""
        config = self.config.model_dump(mode="json", exclude={"num_workers"})
        sizes = {f"num_{split}": len(labels) for split, labels in self._labels.items()}
        return {**config, **sizes, "num_classes": self.num_classes, "class_names": self.class_names}

    def _load(
        self,
        split: Split,
        is_training: bool,
        indices: list[torch.Tensor] | None = None,
        seed: tuple[int, ...] | None = None,
    ) -> torch.utils.data.DataLoader:
        config = self.config
        transform = create_transform(
            (config.in_chans, config.image_size, config.image_size),
            is_training=is_training,
            interpolation=config.interpolation,
            mean=config.mean,
            std=config.std,
            crop_pct=config.crop_pct,
        )
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
