"""What every store of blobs promises: immutable bytes named by their SHA-256."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from headwater.errors import StorageError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore(Protocol):
    """Where blobs are kept. Digests are 64 lower-case hexadecimal digits. Every call may block.

    A blob is whole or absent, and stays once a call has returned it, also after power loss.

    Raises (all methods):
        StorageError: the store failed or cannot be reached, or a name is no digest.
        BlobError: where a blob is needed, it is missing, or its bytes are of another digest.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        ...

    def write(self, content: bytes | Iterable[bytes]) -> str:
        """Keep bytes, and return their digest. Keeping them again changes nothing.

        Raises:
            DiskFullError: no space is left; nothing was kept.
        """
        ...

    def prepare(self, content: Iterable[bytes]) -> tuple[Path, str]:
        """Write a synced file of this machine for `adopt`, and return it with its digest.

        Raises:
            DiskFullError: no space is left; nothing was kept.
        """
        ...

    def adopt(self, temporary: Path, digest: str) -> None:
        """Take over a synced file of this machine whose digest the caller has checked.

        The file is gone when it was kept, and as it was when it was not. It lies on the file
        system of the data directory.
        """
        ...

    def local(self, digest: str) -> AbstractContextManager[Path]:
        """A file of this machine with its bytes, there while the block runs.

        What is opened or mapped in the block can be read after it.
        """
        ...

    def open(self, digest: str) -> BinaryIO:
        """Its bytes, to read in parts."""
        ...

    def read(self, digest: str, *, verify: bool = True) -> bytes:
        """All its bytes; without `verify`, the store may leave out to check them."""
        ...

    def size(self, digest: str) -> int:
        """How many bytes it has."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether it is there."""
        ...

    def delete(self, digest: str) -> int:
        """Remove it, and return its size; 0 when it was not there."""
        ...

    def digests(self) -> Iterator[str]:
        """All that are there, sorted."""
        ...

    def modified_at(self, digest: str) -> datetime | None:
        """When it was kept, by the store's clock; None when it is not there."""
        ...

    def remove_temporary(self, before: datetime) -> int:
        """Remove what broken writes left before a time, and return how many there were."""
        ...


def is_digest(name: str) -> bool:
    """Whether a name is 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(name) is not None


def relative_path(digest: str) -> str:
    """A blob's place in its store, `ab/abcdef…`: the same in all, so that stores can be synced.

    Raises:
        StorageError: `digest` is not 64 lower-case hexadecimal digits.
    """
    if not is_digest(digest):
        raise StorageError(f"{digest!r} is no SHA-256 digest in lower-case hexadecimal")
    return f"{digest[:2]}/{digest}"
