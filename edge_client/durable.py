"""Files that are whole or absent, whatever is killed; and the disk's errors as ours."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.errors import DiskFullError, StorageError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Names the path in what the operating system reports.

    Raises:
        DiskFullError: no space, or no quota, is left.
        StorageError: any other failure of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{path}: no space is left on this disk: free some") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error


def write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that survives a power loss once `sync_folder` was called for its folder.

    Raises:
        StorageError: the disk is full or failed; the file at `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss."""
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_json(path: Path, document: Any) -> None:
    """Replace a JSON file atomically, for readers at the same time; not durable."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        temporary.write_text(json.dumps(document) + "\n")
        temporary.replace(path)


def make_folder(path: Path) -> None:
    """Create a folder, readable only by its user, where it is missing."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
