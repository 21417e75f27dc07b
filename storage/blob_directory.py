"""Blobs in a directory."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from headwater import durable_files
from headwater.errors import BlobError, StorageError
from storage.blob_store import is_digest, relative_path


class BlobDirectory:
    """A `BlobStore` in a directory: `ab/abcdef…`, and `temporary/` for what is being written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / "temporary"
        durable_files.make_folder(self._temporary)

    @property
    def place(self) -> str:
        """See `BlobStore.place`."""
        return str(self.root)

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
        """See `BlobStore.adopt`."""
        path = self.path(digest)
        durable_files.make_folder(path.parent)
        durable_files.adopt(temporary, path)

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be.

        Raises:
            StorageError: `digest` is not 64 lower-case hexadecimal digits.
        """
        return self.root / relative_path(digest)

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        """See `BlobStore.local`. Nothing is checked: whoever reads the bytes does."""
        self.size(digest)
        yield self.path(digest)

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
            raise BlobError(
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
                if is_digest(path.name):
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
            return BlobError(f"blob {digest} is missing from {self.root}: restore a backup")
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
