import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pdiff_hf.tasks import images
from pdiff_hf.tasks.images import ImageColumn

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)
FEATURES = datasets.Features({"image": datasets.Image()})


def to_tensor(image):
    return torch.from_numpy(np.array(image))[None]


def make_column(extra=()):
    rows = [*(Image.fromarray(pixels) for pixels in PIXELS), *extra]
    return ImageColumn(datasets.Dataset.from_dict({"image": rows}, FEATURES), "image", "L")


@pytest.fixture
def many_threads(monkeypatch):
    monkeypatch.setattr(images, "THREADED_BYTES", 0)
    monkeypatch.setattr(images.sys, "platform", "darwin")
    monkeypatch.setattr(images.psutil, "cpu_count", lambda: 4)


def test_several_threads_give_the_batches_in_their_order(many_threads):
    threads, all_four = set(), threading.Barrier(4, timeout=30)

    def transform(image):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            all_four.wait()
        return to_tensor(image)

    order = torch.from_numpy(np.random.default_rng(1).permutation(40)).split(4)
    found = list(make_column().batches(transform, order))
    assert len(threads) == 4
    for batch, index in zip(found, order, strict=True):
        assert torch.equal(batch[:, 0], torch.from_numpy(PIXELS)[index])


def test_images_are_made_ahead_and_no_further(many_threads):
    given = []
    batches = make_column().batches(
        to_tensor, (given.append(number) or torch.tensor([number]) for number in range(40))
    )
    next(batches)
    assert given == [*range(6)]
    next(batches)
    assert given == [*range(7)]
    batches.close()


def test_small_images_are_decoded_by_one_thread():
    threads = set()
    list(
        make_column().batches(
            lambda image: threads.add(threading.get_ident()) or to_tensor(image), torch.arange(40).split(4)
        )
    )
    assert len(threads) == 1


def test_what_a_thread_cannot_decode_is_named(many_threads):
    column = make_column([{"bytes": b"no image", "path": None}])
    with pytest.raises(ValueError, match="column 'image', found bytes in row 40 that cannot be decoded"):
        list(column.batches(to_tensor, torch.arange(41).split(3)))
