"""Labelled images from the Hub or a folder, checked before anything is trained on them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from PIL import Image
from sklearn.model_selection import train_test_split


def load_splits(dataset: str, config_name: str | None = None) -> datasets.DatasetDict:
    """All splits of a folder of Parquet files or images, or of a dataset on the Hub.

    Args:
        dataset (`str`): A folder with `train-*.parquet`, `test-*.parquet` … (also in its sub-folder `data`), a folder
            that [`~datasets.load_dataset`] understands as `imagefolder`, or a Hub id.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.

    Returns:
        `datasets.DatasetDict`: The splits, named as they are stored.

    Raises:
        ValueError: the folder or Hub id does not exist, or a file cannot be read.
    """
    folder = Path(dataset).expanduser()
    is_path = folder.exists() or dataset.startswith((".", "~", os.sep)) or dataset.count("/") > 1
    if is_path and not folder.is_dir():
        raise ValueError(
            f"expected a folder of images or Parquet files, found that {dataset} does not exist or is a file; "
            "correct task.dataset"
        )
    if is_path and config_name is not None:
        raise ValueError(
            f"expected no task.config_name for the folder {dataset}, found {config_name!r}; name a sub-folder"
        )
    files = sorted([*folder.glob("*-*.parquet"), *folder.glob("data/*-*.parquet")]) if is_path else []
    data_files: dict[str, list[str]] = {}
    for file in files:
        try:
            pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"expected a complete Parquet file, found that {file} is truncated or damaged ({error}); copy it again"
            ) from error
        data_files.setdefault(file.name.split("-")[0], []).append(str(file))
    try:
        if data_files:
            return datasets.load_dataset("parquet", data_files=data_files)
        if is_path:
            return datasets.load_dataset("imagefolder", data_dir=str(folder))
        return datasets.load_dataset(dataset, config_name)
    except DatasetGenerationError as error:
        raise ValueError(
            f"expected readable images or Parquet files, found that {dataset} is damaged ({error.__cause__}); copy it "
            "again"
        ) from error
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        expected = "images or Parquet files in it" if is_path else "a folder or a dataset on the Hub"
        raise ValueError(
            f"expected {expected}, found none under {dataset!r} ({str(error).splitlines()[0]}); correct task.dataset"
        ) from error


def check_columns(splits: datasets.DatasetDict, image_column: str, label_column: str) -> datasets.DatasetDict:
    """Keeps the two columns of every split, images as `datasets.Image`.

    Raises:
        ValueError: a column is missing or holds something else.
    """
    checked = {}
    for name, rows in splits.items():
        missing = [column for column in (image_column, label_column) if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"expected columns {image_column!r} and {label_column!r} in split {name!r}, found "
                f"{rows.column_names}; name yours with task.image_column and task.label_column"
            )
        feature = rows.features[image_column]
        if not isinstance(feature, datasets.Image):
            is_encoded = feature == datasets.Value("binary") or (isinstance(feature, dict) and "bytes" in feature)
            if not is_encoded:
                raise ValueError(f"expected images in column {image_column!r}, found {feature}; set task.image_column")
            rows = rows.cast_column(image_column, datasets.Image())
        checked[name] = rows.select_columns(list(dict.fromkeys((image_column, label_column))))
    return datasets.DatasetDict(checked)


def class_labels(splits: datasets.DatasetDict, train: str, column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Labels of every split as integers, and the class names, which the `train` split defines.

    Raises:
        ValueError: labels are not integers, are missing, or lie outside of the classes.
    """
    feature = splits[train].features[column]
    values = {name: rows.data.column(column) for name, rows in splits.items()}
    for name, rows in splits.items():
        if not pa.types.is_integer(values[name].type):
            raise ValueError(
                f"expected class numbers in column {column!r} of split {name!r}, found {rows.features[column]}; "
                "convert them with Dataset.class_encode_column or name another task.label_column"
            )
        if values[name].null_count:
            raise ValueError(
                f"expected a label in every row of split {name!r}, found {values[name].null_count} rows without; drop "
                "them"
            )
    labels = {name: column.to_numpy().astype(np.int64) for name, column in values.items()}
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is None:
        names = [str(index) for index in range(labels[train].max() + 1)]
    for name, split_labels in labels.items():
        (wrong,) = np.nonzero((split_labels < 0) | (split_labels >= len(names)))
        if len(wrong):
            raise ValueError(
                f"expected labels in [0, {len(names)}) in column {column!r}, found {split_labels[wrong[0]]} in row "
                f"{wrong[0]} of split {name!r}; drop such rows or name another split or task.label_column"
            )
    return labels, list(names)


def stratified_choice(indices: np.ndarray, labels: np.ndarray, size: int, seed: int, key: str) -> list[np.ndarray]:
    """Divides `indices` into `size` chosen ones and the rest, both with all classes in proportion and in rising order.

    Raises:
        ValueError: there are not enough images.
    """
    try:
        rest, chosen = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=seed)
    except ValueError as error:
        raise ValueError(
            f"expected {key} that divides {len(indices)} images with all {len(np.unique(labels[indices]))} classes on "
            f"both sides, found {size} ({error}); change {key}"
        ) from error
    return [np.sort(chosen), np.sort(rest)]


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
