"""Blobs by digest, on disk, within a byte budget.

Whole blobs and partial downloads share one folder and one budget. The least recently used go first,
and never one that is pinned. Nothing is synced: a blob's digest is verified at its first use in
each process, and what does not match is fetched again.
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import TracebackType

from edge_client.sizes import show_bytes
from headwater import durable_files
from headwater.errors import DiskFullError, UpdateError, UsageError

_PARTIAL = ".partial"
_CHUNK_BYTES = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobCache:
    """The cache in one folder. `budget_bytes` bounds its files; `now_ns` orders their use."""

    def __init__(
        self, folder: Path, budget_bytes: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        durable_files.make_folder(folder, 0o700)
        self.folder = folder
        self.budget_bytes = budget_bytes
        self._now_ns = now_ns
        self._pins: Counter[str] = Counter()
        self._verified: set[str] = set()
        # By file name: when it was last used, and its size. The order of use outlives the process
        # as the files' times.
        self._files: dict[str, tuple[int, int]] = {}
        for entry in os.scandir(folder):
            self._files[entry.name] = (entry.stat().st_mtime_ns, entry.stat().st_size)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files, partial downloads too."""
        return sum(size for _, size in self._files.values())

    def is_verified(self, digest: str) -> bool:
        """Whether `holds` answers at once, without reading the file."""
        return digest in self._verified or not self.path(digest).exists()

    def holds(self, digest: str) -> bool:
        """Whether the blob is here and whole; a damaged one is removed."""
        path = self.path(digest)
        if not path.exists():
            self._verified.discard(digest)
            return False
        if digest not in self._verified:
            if _digest_of(path) != digest:
                self.remove(digest)
                return False
            self._verified.add(digest)
        self.note(path)
        return True

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would.

        Raises:
            UsageError: this is no digest, and might be a path to elsewhere.
        """
        if not _DIGEST.fullmatch(digest):
            raise UsageError(f"{digest[:80]!r} is not a digest of 64 hexadecimal digits")
        return self.folder / digest

    def read(self, digest: str) -> bytes:
        """The bytes of a blob that `holds` found."""
        with durable_files.disk_errors(self.path(digest)):
            return self.path(digest).read_bytes()

    @contextmanager
    def pinned(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these blobs while the body runs."""
        pins = Counter(digests)
        self._pins += pins
        try:
            yield
        finally:
            self._pins -= pins

    def download(self, digest: str) -> "Download":
        """Begin or resume a download."""
        return Download(self, digest)

    def make_room(self, digest: str, size_bytes: int) -> None:
        """Remove the least recently used blobs until one of this size fits.

        Raises:
            DiskFullError: it cannot fit, because it or what is in use fills the budget.
        """
        if size_bytes > self.budget_bytes:
            raise DiskFullError(
                f"a blob of {show_bytes(size_bytes)} does not fit the cache budget of "
                f"{show_bytes(self.budget_bytes)}: raise --cache-bytes on this device"
            )
        files = [item for item in self._files.items() if _digest(item[0]) != digest]
        used = sum(size for _, (_, size) in files)
        for name, (_, size) in sorted(files, key=itemgetter(1)):
            if used + size_bytes <= self.budget_bytes:
                return
            if _digest(name) not in self._pins:
                self.remove(name)
                used -= size
        if used + size_bytes > self.budget_bytes:
            raise DiskFullError(
                f"a blob of {show_bytes(size_bytes)} does not fit beside {show_bytes(used)} in use "
                f"in the cache budget of {show_bytes(self.budget_bytes)}: raise --cache-bytes"
            )

    def admit(self, partial: Path, digest: str) -> None:
        """Take in a finished download whose digest was verified."""
        durable_files.move(partial, self.path(digest))
        self._files.pop(partial.name, None)
        self.note(self.path(digest))
        self._verified.add(digest)

    def note(self, path: Path) -> None:
        """Record that a file of this folder was used or written just now."""
        now = self._now_ns()
        with durable_files.disk_errors(path):
            os.utime(path, ns=(now, now))
            self._files[path.name] = (now, path.stat().st_size)

    def remove(self, name: str) -> None:
        """Remove a file of this folder, which may be gone already."""
        durable_files.remove(self.folder / name)
        self._files.pop(name, None)
        self._verified.discard(name)


class Download:
    """A partial blob. `offset_bytes` is what is here already; it survives the process.

    Raises:
        DiskFullError: on entry or while writing, when no space is left.
    """

    def __init__(self, cache: BlobCache, digest: str) -> None:
        self._cache = cache
        self._digest = digest
        self._path = cache.path(digest).with_suffix(_PARTIAL)
        self._hash = hashlib.sha256()
        self.offset_bytes = 0

    def __enter__(self) -> "Download":
        with durable_files.disk_errors(self._path):
            self._file = self._path.open("a+b", buffering=0)
            size_bytes = os.fstat(self._file.fileno()).st_size
            self._file.seek(0)
            while self.offset_bytes < size_bytes:
                chunk = self._file.read(_CHUNK_BYTES)
                self._hash.update(chunk)
                self.offset_bytes += len(chunk)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._path.exists():
            self._cache.note(self._path)

    def write(self, data: bytes) -> None:
        """Append the next bytes."""
        durable_files.append(self._file, self._path, data)
        self._hash.update(data)
        self.offset_bytes += len(data)

    def discard(self) -> None:
        """Throw away what is here."""
        self._cache.remove(self._path.name)

    def finish(self) -> None:
        """Verify the digest and move the blob into the cache.

        Raises:
            UpdateError: other bytes than the digest names; the partial file is removed.
        """
        if self._hash.hexdigest() != self._digest:
            self.discard()
            raise UpdateError(
                f"the bytes received for blob {self._digest[:12]}… do not have that digest"
            )
        self._cache.admit(self._path, self._digest)


def _digest(name: str) -> str:
    return name.removesuffix(_PARTIAL)


def _digest_of(path: Path) -> str:
    with durable_files.disk_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
