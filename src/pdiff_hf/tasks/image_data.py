"""Images of a dataset: which column they are in, and how they are decoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import datasets
import numpy as np
import torch
from PIL import Image


def find_image_column(rows: datasets.Dataset) -> str:
    """The only column with images.

    Raises:
        ValueError: there are none or several.
    """
    found = [name for name, feature in rows.features.items() if _is_encoded(feature)]
    if len(found) != 1:
        raise ValueError(
            f"expected one column with images, found {found or 'none'} among {rows.column_names}; name it with "
            "task.image_column"
        )
    return found[0]


def select_images(splits: datasets.DatasetDict, image_column: str, label_column: str) -> datasets.DatasetDict:
    """Keeps the two columns of every split, images as `datasets.Image`.

    Raises:
        ValueError: the column holds something else.
    """
    checked = {}
    for name, rows in splits.items():
        feature = rows.features[image_column]
        if not _is_encoded(feature):
            raise ValueError(f"expected images in column {image_column!r}, found {feature}; set task.image_column")
        if not isinstance(feature, datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image())
        checked[name] = rows.select_columns(list(dict.fromkeys((image_column, label_column))))
    return datasets.DatasetDict(checked)


def _is_encoded(feature: object) -> bool:
    """Whether a column holds images, or bytes that may be images."""
    is_binary = feature == datasets.Value("binary") or (isinstance(feature, dict) and "bytes" in feature)
    return is_binary or isinstance(feature, datasets.Image)


class TransformedImages(torch.utils.data.Dataset):
    """Decoded and transformed images with their labels.

    Args:
        rows (`datasets.Dataset`): The rows.
        column (`str`): Their image column.
        labels (`torch.Tensor` of shape `(N,)`): Their classes.
        mode (`str`): Mode of a PIL image, `L` or `RGB`.
        transform (`Callable`): From a PIL image to a tensor `(C, H, W)`.
        seed (`tuple[int, ...]`, *optional*): The randomness of an image depends on it and on the position only.

    Raises:
        ValueError: an image cannot be decoded.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        column: str,
        labels: torch.Tensor,
        mode: str,
        transform: Callable[[Image.Image], torch.Tensor],
        seed: tuple[int, ...] | None = None,
    ):
        self.rows = rows
        self.column = column
        self.labels = labels
        self.mode = mode
        self.transform = transform
        self.seed = seed

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
        with _seeded(int(np.random.SeedSequence([*self.seed, index]).generate_state(1)[0])):
            return self.transform(image), self.labels[index]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the two global generators that timm's transforms draw from, and puts them back."""
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
