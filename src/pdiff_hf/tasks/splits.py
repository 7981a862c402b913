"""Labels of a dataset, checked, and three disjoint splits of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
from sklearn.model_selection import train_test_split

from ..wording import setting
from .config import SplitConfig

Split = Literal["train", "val", "test"]


def check_columns(splits: datasets.DatasetDict, columns: Mapping[str, str]) -> None:
    """Raise `ValueError` unless every split has the columns `{key of the recipe: column}`."""
    for name, rows in splits.items():
        if any(column not in rows.column_names for column in columns.values()):
            expected = " and ".join(map(repr, columns.values()))
            raise ValueError(
                f"expected columns {expected} in split {name!r}, found {rows.column_names}; name yours with "
                f"{' and '.join(setting(f'task.{key}') for key in columns)}"
            )


def class_labels(splits: datasets.DatasetDict, train: str, column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Labels of every split as integers, and the class names, which the `train` split defines.

    Labels that are stored as strings are numbered in alphabetical order.

    Raises:
        ValueError: labels are neither integers nor strings, are missing, or lie outside of the classes.
    """
    feature = splits[train].features[column]
    values = {name: rows.data.column(column) for name, rows in splits.items()}
    is_text = pa.types.is_string(values[train].type) or pa.types.is_large_string(values[train].type)
    for name, rows in splits.items():
        if not (values[name].type == values[train].type if is_text else pa.types.is_integer(values[name].type)):
            raise ValueError(
                f"expected class numbers in column {column!r} of split {name!r}, found {rows.features[column]}; "
                f"convert them with Dataset.class_encode_column or name another {setting('task.label_column')}"
            )
        if values[name].null_count:
            raise ValueError(
                f"expected a label in every row of split {name!r}, found {values[name].null_count} rows without; drop "
                "them"
            )
    if is_text:
        names = sorted(values[train].unique().to_pylist())
        numbers = {name: number for number, name in enumerate(names)}
        found = {name: [numbers.get(label, -1) for label in stored.to_pylist()] for name, stored in values.items()}
        expected = f"the labels of split {train!r}"
    else:
        found = {name: stored.to_numpy() for name, stored in values.items()}
        is_named = isinstance(feature, datasets.ClassLabel) and feature.names is not None
        names = list(feature.names) if is_named else [str(index) for index in range(int(found[train].max()) + 1)]
        expected = f"labels in [0, {len(names)})"
    labels = {name: np.array(split_labels, dtype=np.int64) for name, split_labels in found.items()}
    for name, split_labels in labels.items():
        (wrong,) = np.nonzero((split_labels < 0) | (split_labels >= len(names)))
        if len(wrong):
            value = values[name][int(wrong[0])].as_py()
            raise ValueError(
                f"expected {expected} in column {column!r}, found {value!r} in row {wrong[0]} of split {name!r}; drop "
                f"such rows or name another split or {setting('task.label_column')}"
            )
    return labels, names


def divide(config: SplitConfig, labels: Mapping[str, np.ndarray]) -> dict[Split, tuple[str, np.ndarray]]:
    """Three disjoint splits: of `train`, `val` and `test` the stored split and positions in it.

    Args:
        config ([`SplitConfig`]): Names the stored splits, or sizes of what is taken of the train split.
        labels (`Mapping[str, np.ndarray]`): Of every stored split the labels `(N,)`.

    Raises:
        ValueError: there are not enough examples.
    """
    train = config.train_split
    rest = np.arange(len(labels[train]))
    parts: dict[Split, tuple[str, np.ndarray]] = {}
    taken = {"test": (config.test_split, config.test_size), "val": (config.val_split, config.val_size)}
    for split, (name, size) in taken.items():
        key = f"task.{split}_size"
        if name is not None:
            index = np.arange(len(labels[name]))
            if size is not None and size != len(index):
                index, _ = stratified_choice(index, labels[name], size, config.seed, key)
        else:
            name = train
            index, rest = stratified_choice(rest, labels[train], size or len(rest) // 10, config.seed, key)
        parts[split] = (name, index)
    if config.train_size is not None and config.train_size != len(rest):
        rest, _ = stratified_choice(rest, labels[train], config.train_size, config.seed, "task.train_size")
    return {"train": (train, rest)} | parts


def stratified_choice(indices: np.ndarray, labels: np.ndarray, size: int, seed: int, key: str) -> list[np.ndarray]:
    """Divides `indices` into `size` chosen ones and the rest, both with all classes in proportion and in rising order.

    Raises:
        ValueError: there are not enough examples.
    """
    try:
        rest, chosen = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=seed)
    except ValueError as error:
        raise ValueError(
            f"expected {key.removeprefix('task.')} that divides {len(indices)} examples with all "
            f"{len(np.unique(labels[indices]))} classes on both sides, found {size} ({error}); change "
            f"{setting(key) if key.startswith('task.') else key}"
        ) from error
    return [np.sort(chosen), np.sort(rest)]
