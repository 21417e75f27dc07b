"""Blobs: immutable bytes named by their SHA-256, in a directory."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from headwater import durable_files
from headwater.errors import StorageError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore(Protocol):
    """Where blobs are kept. Digests are 64 lower-case hexadecimal digits.

    A blob is whole or absent, and stays once a call has returned it, also after power loss.
    """

    def write(self, content: bytes | Iterable[bytes]) -> str:
        """Keep bytes, and return their digest. Keeping them again changes nothing.

        Raises:
            DiskFullError: no space is left; nothing was kept.
            StorageError: the store failed.
        """
        ...

    def prepare(self, content: Iterable[bytes]) -> tuple[Path, str]:
        """Write a synced file for `adopt`, and return it with its digest.

        Raises:
            DiskFullError: no space is left; nothing was kept.
            StorageError: the store failed.
        """
        ...

    def adopt(self, temporary: Path, digest: str) -> None:
        """Take over a synced file of this machine whose digest the caller has checked."""
        ...

    def open(self, digest: str) -> BinaryIO:
        """Its bytes, to read in parts.

        Raises:
            StorageError: it is not there.
        """
        ...

    def read(self, digest: str, *, verify: bool = True) -> bytes:
        """All its bytes.

        Raises:
            StorageError: it is not there, or (`verify`) its bytes are not of this digest.
        """
        ...

    def size(self, digest: str) -> int:
        """How many bytes it has.

        Raises:
            StorageError: it is not there.
        """
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


class BlobDirectory:
    """A `BlobStore` in a directory: `ab/abcdef…`, and `temporary/` for what is being written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / "temporary"
        durable_files.make_folder(self._temporary)

    def write(self, content: bytes | Iterable[bytes]) -> str:
        """See `BlobStore.write`."""
        temporary, digest = self.prepare([content] if isinstance(content, bytes) else content)
        self.adopt(temporary, digest)
        return digest

    def prepare(self, content: Iterable[bytes]) -> tuple[Path, str]:
        """See `BlobStore.prepare`."""
        hasher = hashlib.sha256()
        temporary = durable_files.write_temporary(self._temporary, _hashed(content, hasher))
        return temporary, hasher.hexdigest()

    def adopt(self, temporary: Path, digest: str) -> None:
        """See `BlobStore.adopt`. The file lies on the same file system."""
        path = self.path(digest)
        durable_files.make_folder(path.parent)
        durable_files.adopt(temporary, path)

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be.

        Raises:
            StorageError: `digest` is not 64 lower-case hexadecimal digits.
        """
        if not _DIGEST.fullmatch(digest):
            raise StorageError(f"{digest!r} is no SHA-256 digest in lower-case hexadecimal")
        return self.root / digest[:2] / digest

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore.open`."""
        try:
            return self.path(digest).open("rb")
        except OSError as error:
            raise self._unreadable(digest, error) from error

    def read(self, digest: str, *, verify: bool = True) -> bytes:
        """See `BlobStore.read`."""
        with self.open(digest) as file:
            content = file.read()
        if verify and hashlib.sha256(content).hexdigest() != digest:
            raise StorageError(
                f"blob {digest} in {self.root} is damaged: its bytes have another digest; restore "
                "it from a backup"
            )
        return content

    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""
        try:
            return self.path(digest).stat().st_size
        except OSError as error:
            raise self._unreadable(digest, error) from error

    def exists(self, digest: str) -> bool:
        """See `BlobStore.exists`."""
        return self.path(digest).is_file()

    def delete(self, digest: str) -> int:
        """See `BlobStore.delete`."""
        return durable_files.remove(self.path(digest))

    def digests(self) -> Iterator[str]:
        """See `BlobStore.digests`."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(folder.iterdir()):
                if _DIGEST.fullmatch(path.name):
                    yield path.name

    def modified_at(self, digest: str) -> datetime | None:
        """See `BlobStore.modified_at`."""
        return _modified_at(self.path(digest))

    def remove_temporary(self, before: datetime) -> int:
        """See `BlobStore.remove_temporary`."""
        removed = 0
        for path in self._temporary.iterdir():
            modified = _modified_at(path)
            if modified is not None and modified < before:
                durable_files.remove(path)
                removed += 1
        return removed

    def _unreadable(self, digest: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return StorageError(f"blob {digest} is missing from {self.root}: restore a backup")
        return StorageError(f"blob {digest} in {self.root} cannot be read: {error.strerror}")


def _hashed(chunks: Iterable[bytes], hasher: "hashlib._Hash") -> Iterator[bytes]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _modified_at(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
