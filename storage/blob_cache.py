"""Copies of blobs on this machine: the ones used last, and those in use."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from headwater import durable_files
from headwater.errors import BlobError, StorageError
from storage.blob_directory import BlobDirectory

FETCHES = 2
"""A transfer that was damaged on its way must not look like a blob that is damaged for good."""


@dataclass(eq=False)
class _Copy:
    """A blob's copy: `checked` by this process, in use by so many `users`."""

    size_bytes: int = 0
    checked: bool = False
    users: int = 0
    fetching: Lock = field(default_factory=Lock)


class BlobCache:
    """A folder of verified copies, at most `limit_bytes` and what is in use at a time.

    One process uses a folder; it takes over what a former one left, once it has read it again.
    Used by many threads: a blob is fetched once, and those who want it meanwhile wait for it.
    """

    def __init__(self, folder: Path, limit_bytes: int, source: str) -> None:
        """`source` is where blobs are fetched from, for messages."""
        self.directory = BlobDirectory(folder)
        self.limit_bytes = limit_bytes
        self._source = source
        self._lock = Lock()
        self._copies = OrderedDict(
            (digest, _Copy(self.directory.size(digest)))
            for digest in sorted(self.directory.digests(), key=self._age)
        )

    @contextmanager
    def local(self, digest: str, fetch: Callable[[], Iterable[bytes]]) -> Iterator[Path]:
        """The copy, there while the block runs; `fetch` brings the bytes where there is none.

        Raises:
            BlobError: what was fetched is of another digest, each time.
            DiskFullError, StorageError: this disk failed.
        """
        path = self.directory.path(digest)
        with self._used(digest) as copy:
            with copy.fetching:
                if not copy.checked:
                    self._obtain(digest, fetch)
                    copy.size_bytes, copy.checked = self.directory.size(digest), True
            self._shrink()
            yield path

    def adopt(self, temporary: Path, digest: str) -> None:
        """Take over a synced file of the same file system, whose digest the caller has checked.

        Raises:
            StorageError: this disk failed.
        """
        with self._used(digest) as copy, copy.fetching:
            self.directory.adopt(temporary, digest)
            copy.size_bytes, copy.checked = self.directory.size(digest), True

    def delete(self, digest: str) -> None:
        """Remove a copy; what is open or mapped stays readable."""
        with self._lock:
            self._copies.pop(digest, None)
            self.directory.delete(digest)

    @contextmanager
    def _used(self, digest: str) -> Iterator[_Copy]:
        with self._lock:
            copy = self._copies.setdefault(digest, _Copy())
            copy.users += 1
            self._copies.move_to_end(digest)
        try:
            yield copy
        finally:
            with self._lock:
                copy.users -= 1
                if digest not in self._copies:  # deleted while it was fetched or read
                    self.directory.delete(digest)
            self._shrink()

    def _obtain(self, digest: str, fetch: Callable[[], Iterable[bytes]]) -> None:
        path = self.directory.path(digest)
        if path.exists() and _digest_of(path) == digest:  # a former process left it
            return
        for _ in range(FETCHES):
            temporary, found = self.directory.prepare(fetch())
            if found == digest:
                self.directory.adopt(temporary, digest)
                return
            durable_files.remove(temporary)
        raise BlobError(
            f"blob {digest} in {self._source} is damaged: its bytes have the digest {found}; "
            "restore it from a backup"
        )

    def _shrink(self) -> None:
        """Remove what was not used for longest, until the others fit; and what never came."""
        with self._lock:
            excess = sum(copy.size_bytes for copy in self._copies.values()) - self.limit_bytes
            for digest, copy in list(self._copies.items()):
                if not copy.users and (excess > 0 or not copy.size_bytes):
                    del self._copies[digest]
                    self.directory.delete(digest)
                    excess -= copy.size_bytes

    def _age(self, digest: str) -> float:
        modified = self.directory.modified_at(digest)
        return modified.timestamp() if modified else 0.0


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
