"""Image classification on any Hugging Face image dataset, with timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_data_config

from ..base_model import BaseModel
from ..builders import timm_name
from ..host_copy import to_device
from ..wording import setting
from .config import ImageClassificationConfig
from .images import AugmentedImages, ImageColumn, image_column, select_images
from .sources import check_fingerprint, load_splits
from .splits import Split, check_columns, class_labels, divide
from .task import Task, cache_bytes

# Images that are decoded at a time.
BLOCK_IMAGES = 256
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
        self._kept: dict[Split, torch.Tensor] = {}
        self._scales: dict[torch.device, tuple[torch.Tensor, ...]] = {}
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
            config = config.model_copy(update={"image_column": image_column(stored[config.train_split])})
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
        name = base_model and timm_name(base_model.library, base_model.name, base_model.kwargs)
        family = timm.get_pretrained_cfg(name) if name else None
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
        rows, column = rows.select(np.random.default_rng(0).permutation(len(rows))[:num]), image_column(rows)
        return torch.cat(
            [self.finish(block) for block in self._stored(rows.cast_column(column, datasets.Image()), column)]
        )

    def encode(self, image: Image.Image) -> torch.Tensor:
        """Any image as a network of the task takes it, `(1, C, H, W)` float32; the digits' are pixel / 255."""
        image = image.convert(self._mode)
        if self.config.dataset == "digits":
            pixels = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
            return torch.from_numpy(pixels).div(255)[None, None]
        return self.finish(self._transform(is_training=False)(image))[None]

    @property
    def _mode(self) -> str:
        return "L" if self.config.in_chans == 1 else "RGB"

    def _transform(self, is_training: bool) -> Callable:
        """The transform of a PIL image: augmented and normalised, or for evaluation to pixels, uint8."""
        config = self.config
        return create_transform(
            (config.in_chans, config.image_size, config.image_size),
            is_training=is_training,
            interpolation=config.interpolation or "bilinear",
            crop_pct=config.crop_pct or 1.0,
            normalize=is_training,
            **self._mean_and_std,
        )

    @property
    def _mean_and_std(self) -> dict[str, tuple[float, ...]]:
        # The embedded digits are not normalised.
        return {"mean": self.config.mean or (0.0,), "std": self.config.std or (1.0,)}

    def _stored(self, rows: datasets.Dataset, column: str) -> Iterator[torch.Tensor]:
        """All images of a column as they are stored, block by block."""
        blocks = torch.arange(len(rows)).split(BLOCK_IMAGES)
        return ImageColumn(rows, column, self._mode).batches(self._transform(is_training=False), blocks)

    def _pixels(self, split: Split) -> torch.Tensor | None:
        """All images of a split as they are stored, kept in memory; `None` where they need too much."""
        if split not in self._kept and self._num_bytes(split) <= cache_bytes(torch.device("cpu")):
            self._kept[split] = torch.cat([*self._stored(self._rows[split], self.config.image_column)])
        return self._kept.get(split)

    def _num_bytes(self, split: Split) -> int:
        """Memory of all images of a split as they are stored, one byte a value."""
        return len(self.labels(split)) * self.bytes_per_example // 4

    def _prepare(self, split: Split) -> torch.Tensor:
        if split in self._kept:
            return self.finish(self._kept[split])
        return torch.cat([self.finish(block) for block in self._stored(self._rows[split], self.config.image_column)])

    def keep(self, split: Split, device: torch.device) -> torch.Tensor | None:
        """As [`Task.keep`]: pixels, but for a training on the CPU finished images where they fit."""
        if split == "train" and self.is_augmented:
            return None
        is_finished = device.type == "cpu" and 4 * self._num_bytes(split) <= cache_bytes(device)
        if is_finished or split not in self._rows:
            return super().keep(split, device)
        if self._num_bytes(split) > cache_bytes(device):
            return None
        if (pixels := self._pixels(split)) is not None:
            return pixels.to(device)
        # Too many for the memory of the machine.
        shape = (len(self.labels(split)), self.config.in_chans, self.config.image_size, self.config.image_size)
        kept, start = torch.empty(shape, dtype=torch.uint8, device=device), 0
        for block in self._stored(self._rows[split], self.config.image_column):
            kept[start : start + len(block)] = to_device(block, device)
            start += len(block)
        return kept

    def finish(self, stored: torch.Tensor) -> torch.Tensor:
        """Normalised images `(…, C, H, W)` of pixels, to the bit as timm's transform makes them one by one."""
        if stored.dtype != torch.uint8:
            return stored
        if stored.device not in self._scales:
            # A division by a number is a product with its reciprocal on some devices, and by a tensor on none.
            scales = [(255.0,), *self._mean_and_std.values()]
            self._scales[stored.device] = tuple(torch.tensor(v, device=stored.device)[:, None, None] for v in scales)
        largest, mean, std = self._scales[stored.device]
        return stored.float().div_(largest).sub_(mean).div_(std)

    def load(self, split: Split, indices: torch.Tensor, seed: tuple[int, int]) -> Iterator[torch.Tensor]:
        """As [`Task.load`]: decoded ahead by threads, or augmented by `num_workers` processes."""
        images = ImageColumn(self._rows[split], self.config.image_column, self._mode)
        if split != "train" or not self.is_augmented:
            return images.batches(self._transform(is_training=False), indices)
        loader = torch.utils.data.DataLoader(
            AugmentedImages(images, self._transform(is_training=True), seed),
            batch_sampler=indices.tolist(),
            num_workers=self.config.num_workers,
            # Without one of its own, a loader draws from the global generator.
            generator=torch.Generator(),
        )
        return iter(loader)


def _inputs_of(base_model: BaseModel | None) -> dict[str, int | None]:
    """Channels and pixels of the images of a network, `None` where its reference does not say it."""
    known: dict[str, Any] = {}
    if base_model is not None and timm_name(base_model.library, base_model.name, base_model.kwargs):
        kwargs = base_model.kwargs
        known = {"in_chans": kwargs.get("in_chans"), "image_size": kwargs.get("img_size", kwargs.get("image_size"))}
    elif base_model is not None and base_model.library == "transformers":
        config = base_model.kwargs["config"]
        known = {"in_chans": config.get("num_channels"), "image_size": config.get("image_size")}
    return {key: value if isinstance(value := known.get(key), int) else None for key in ("in_chans", "image_size")}
