"""Images of a dataset's column as tensors."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import datasets
import numpy as np
import psutil
import torch
from PIL import Image

from ..machine import process_state
from ..wording import setting

# Several threads decode images of more bytes. Of smaller ones, most is work of Python, which threads do not share.
THREADED_BYTES = 2**13


@dataclass(frozen=True)
class ImageColumn:
    """Images of a column, in a PIL `mode`."""

    rows: datasets.Dataset
    column: str
    mode: str

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Image.Image:
        """One image.

        Raises:
            ValueError: it cannot be decoded; names the row.
        """
        return next(self._load([index]))

    def batches(
        self, transform: Callable[[Image.Image], torch.Tensor], indices: Iterable[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Transformed images at the positions `(n,)` of every batch, `(n, C, H, W)`, in order.

        They are made ahead of whoever takes them, by as many threads as this process has cores.

        Raises:
            ValueError: an image cannot be decoded; names the row.
        """

        def batch(index: torch.Tensor) -> torch.Tensor:
            return torch.stack([transform(image) for image in self._load(index.tolist())])

        indices, threads = iter(indices), self._num_threads()
        pool = ThreadPoolExecutor(threads)
        try:
            ahead = deque(pool.submit(batch, index) for index in itertools.islice(indices, threads + 1))
            while ahead:
                made = ahead.popleft().result()
                ahead.extend(pool.submit(batch, index) for index in itertools.islice(indices, 1))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, positions: Sequence[int]) -> Iterator[Image.Image]:
        feature = self.rows.features[self.column]
        # Bytes of many rows at once: for one row, datasets takes longer than a small image.
        for index, value in zip(positions, self._encoded[positions][self.column], strict=True):
            try:
                yield feature.decode_example(value).convert(self.mode)
            except OSError as error:
                raise ValueError(
                    f"expected an image in column {self.column!r}, found bytes in row {index} that cannot be decoded "
                    f"({error}); repair or drop the row"
                ) from error

    @cached_property
    def _encoded(self) -> datasets.Dataset:
        feature = replace(self.rows.features[self.column], decode=False)
        return self.rows.cast_column(self.column, feature)

    def _num_threads(self) -> int:
        first = self._encoded[0][self.column]["bytes"]
        if first is not None and len(first) <= THREADED_BYTES:
            return 1
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count()
        return max(1, cores // process_state().num_processes)


@dataclass
class AugmentedImages(torch.utils.data.Dataset):
    """Images transformed to `(C, H, W)` at random; the randomness of one depends on `seed` and its position alone."""

    images: ImageColumn
    transform: Callable[[Image.Image], torch.Tensor]
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.images.load(index)
        # timm's transforms draw from two global generators, which are put back.
        seed = int(np.random.SeedSequence([*self.seed, index]).generate_state(1)[0])
        python_state = random.getstate()
        with torch.random.fork_rng(devices=()):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            transformed = self.transform(image)
        random.setstate(python_state)
        return transformed


def image_column(rows: datasets.Dataset) -> str:
    """The one column of images; `ValueError` where there is none, or where there are several."""
    found = [name for name, feature in rows.features.items() if _is_encoded(feature)]
    if len(found) != 1:
        raise ValueError(
            f"expected one column with images, found {found or 'none'} among {rows.column_names}; name it with "
            f"{setting('task.image_column')}"
        )
    return found[0]


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
