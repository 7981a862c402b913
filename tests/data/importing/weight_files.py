"""Bytes of files for the tests of reading: archives, pickles and calls that are made by hand."""

import io
import pickle
import struct
import zipfile

import numpy as np
import torch

PREFIX = "archive/"


class Call:
    """Pickled as a call, which whoever unpickles it would make."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """What is called by a pickle has to look as if it could be."""


def saved(value, **options):
    """The bytes of `torch.save`."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip archive of names and bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def torch_zip(pickled, compression=zipfile.ZIP_STORED, **members):
    """An archive of torch.save with this `data.pkl`, and members by names without the prefix."""
    members = {"data.pkl": pickled, "byteorder": b"little", "data/0": bytes(16), **members}
    return zipped({PREFIX + name: data for name, data in members.items()}, compression)


def text(value):
    """The operation that pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    """The operation that pushes an integer."""
    return pickle.dumps(value, 2)[2:-1]


def storage_id(key="0", numel=4, kind="FloatStorage"):
    """The operations that push a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor_of(storage=None, offset=0, size=(4,), stride=(1,)):
    """A pickle of one tensor."""
    parts = [storage_id() if storage is None else storage, number(offset), number(size), number(stride), b"\x89N"]
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(parts) + b"tR."


def npy(header, data=b""):
    """A `.npy` file with this header."""
    header = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def array_bytes(array, **options):
    """The bytes of `numpy.save`."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()
