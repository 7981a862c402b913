"""Files on the Hub that are read in parts, without a download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfFileSystem

from ..hub.errors import hub_errors


class RemoteFile:
    """A file at `hf://` as Arrow reads it; what goes wrong on the way is said to be of the Hub.

    Args:
        address (`str`): `hf://datasets/user/name@commit/path`.
    """

    closed = False

    def __init__(self, address: str):
        self._repo_id = re.fullmatch(r"hf://datasets/([^@]+)@.*", address)[1]
        with hub_errors(self._repo_id):
            self._file = HfFileSystem().open(address.removeprefix("hf://"), "rb")

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes."""
        with hub_errors(self._repo_id):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def close(self) -> None:
        """Forget what was read."""
        self.closed = True
        self._file.close()


@contextmanager
def open_remote(address: str) -> Iterator[RemoteFile]:
    """Open a [`RemoteFile`]."""
    file = RemoteFile(address)
    try:
        yield file
    finally:
        file.close()
