"""Writing a growing file to the disk while it still grows, so that its sync has little left."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from headwater import durable_files

FLUSH_BYTES = 8 * 2**20
"""How much is left to gather before the disk is given work: the last sync waits for about that."""


class WriteBehind:
    """Flushes a file behind its writer, on a thread of its own: at most one flush is under way.

    A flush makes nothing durable, the sync at the end does. But a flush that failed stays failed:
    the kernel tells a failure once, and a sync after it would pass.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._gathered_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flush: Future[None] | None = None

    def wrote(self, size_bytes: int) -> None:
        """Note that the file has grown; start a flush if it is worth one and none is under way.

        Raises:
            DiskFullError, StorageError: a flush failed before.
        """
        self._gathered_bytes += size_bytes
        if self._gathered_bytes >= FLUSH_BYTES and (self._flush is None or self._flush.done()):
            self._check()
            self._gathered_bytes = 0
            self._flush = self._thread.submit(durable_files.flush, self._file, self._path)

    def end(self) -> None:
        """Wait for the flush under way, and start no other: now the file may be closed.

        Raises:
            DiskFullError, StorageError: this flush failed, or one before it.
        """
        self._thread.shutdown()
        self._check()

    def _check(self) -> None:
        if self._flush is not None:
            self._flush.result()
