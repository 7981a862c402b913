"""Sources of labelled examples: the Hub, or a folder of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..hub.snapshot import local_folder
from ..wording import setting
from .config import SplitConfig

# What a folder may hold beside images of their own, by the builder that reads it.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}
TABLES = {"images": (".parquet",), "texts": tuple(FORMATS)}
# Examples of every split that tell one folder from another of the same name.
FINGERPRINT_ROWS = 256


def load_splits(config: SplitConfig, noun: str) -> datasets.DatasetDict:
    """The splits that a task names, of a folder or of a dataset on the Hub.

    A folder holds `train-*.parquet`, `test-*.parquet` … or `train.parquet`, for texts also `.csv`, `.jsonl` or
    `.json`, itself or in a sub-folder (that of `data`, or the only one that has such files); or it is one that
    [`~datasets.load_dataset`] understands as `imagefolder`.

    The splits are named as they are stored, and `noun` is `"images"` or `"texts"`.

    Raises:
        ValueError: the folder or Hub id does not exist, a file cannot be read, or a split is missing or named twice.
    """
    dataset, folder, kinds = config.dataset, config.source_folder(), config.files
    if folder is not None and config.config_name is not None:
        raise ValueError(
            f"expected no config_name for the folder {dataset}, found {config.config_name!r}; name a "
            f"sub-folder in {setting('task.dataset')}"
        )
    if len(set(config.named_splits)) < len(config.named_splits):
        raise ValueError(
            f"expected different train, val and test splits, found {config.named_splits}; they must be disjoint"
        )
    if config.test_split is None and config.test_size is None:
        raise ValueError(
            f"expected test_split or test_size, found neither; give {setting('task.test_split')} or "
            f"{setting('task.test_size')}"
        )
    if folder is None and config.dataset_fingerprint is not None:
        raise ValueError(
            f"expected a folder {dataset!r} with the {noun}, which were not on the Hub, found none here; link a copy "
            "of it into this folder"
        )
    tables = {} if folder is None else _find_tables(folder, TABLES[noun])
    if tables:
        _check_names(config, tables)
    try:
        if tables:
            files = {name: [str(file) for file in tables[name]] for name in config.named_splits}
            stored = datasets.load_dataset(FORMATS[tables[config.train_split][0].suffix], data_files=files)
        elif folder is None:
            stored = datasets.load_dataset(dataset, config.config_name)
        elif noun == "images":
            stored = datasets.load_dataset("imagefolder", data_dir=str(folder))
        else:
            raise FileNotFoundError("no such file")
    except DatasetGenerationError as error:
        raise ValueError(
            f"expected readable {kinds}, found that {dataset} is damaged ({error.__cause__}); copy it again"
        ) from error
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        expected = f"{kinds} in it" if folder is not None else "a folder or a dataset on the Hub"
        raise ValueError(
            f"expected {expected}, found none under {dataset!r} ({str(error).splitlines()[0]}); correct "
            f"{setting('task.dataset')}"
        ) from error
    _check_names(config, stored)
    return datasets.DatasetDict({name: stored[name] for name in config.named_splits})


def _check_names(config: SplitConfig, stored: Mapping) -> None:
    if missing := [name for name in config.named_splits if name not in stored]:
        raise ValueError(
            f"expected split {missing[0]!r} in {config.dataset}, found {sorted(stored)}; give "
            f"{setting('task.train_split')} and {setting('task.test_split')} (null with test_size takes that many "
            "examples of the train split)"
        )


def _find_tables(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files of a folder by their splits; an empty `dict` where there are none."""
    for suffix in suffixes:
        files = sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"data/*{suffix}")])
        if not files:
            # A copy of a repository on the Hub has its configuration's files in a folder of their own.
            files = sorted(folder.glob(f"*/*-*{suffix}"))
            if len({file.parent for file in files}) > 1:
                found = sorted({file.parent.name for file in files})
                raise ValueError(f"expected one configuration in {folder}, found {found}; name one of these folders")
        tables: dict[str, list[Path]] = {}
        for file in files:
            try:
                if suffix == ".parquet":
                    pq.read_metadata(file)
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"expected a complete Parquet file, found that {file} is truncated or damaged ({error}); copy it "
                    "again"
                ) from error
            tables.setdefault(file.stem.split("-")[0], []).append(file)
        if tables:
            return tables
    return {}


def check_fingerprint(
    config: SplitConfig, splits: datasets.DatasetDict, labels: Mapping[str, np.ndarray]
) -> str | None:
    """A hash of all labels and of some examples of every split of a folder; `None` for a dataset on the Hub.

    Raises:
        ValueError: it is not the one in the configuration.
    """
    if local_folder(config.dataset) is None:
        return None
    digest = hashlib.sha256()
    for name, rows in sorted(splits.items()):
        digest.update(f"{name} {len(rows)}".encode() + labels[name].tobytes())
        picked = np.linspace(0, len(rows) - 1, min(len(rows), FINGERPRINT_ROWS)).round().astype(int)
        for row in rows.select(picked).with_format("arrow")[:].to_pylist():
            for value in row.values():
                is_image = isinstance(value, dict)
                content = value["bytes"] or Path(value["path"]).read_bytes() if is_image else str(value).encode()
                digest.update(content)
    found = digest.hexdigest()
    if config.dataset_fingerprint not in (None, found):
        raise ValueError(
            f"expected the content {config.dataset_fingerprint[:12]}… in {config.dataset}, found {found[:12]}…; it "
            "was changed, or is another folder of the same name"
        )
    return found
