"""Every file operation that must survive power loss.

A file is written under a temporary name, synced, renamed, and then its folder is synced: a reader
finds all of it or none, and a rename that was reported done stays done. No other module of
the coordinator, its storage or the client syncs, so that a test can record the steps (`write`,
`flush`, `sync`, `rename`, `link`, `sync folder`, `make folder`, `remove`, each with its path), and
fail or tear each of them. What a device may lose is left unsynced: the news in `replace`, and
downloads, whose digest is looked at again by the next process (`move`).
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import uuid4

from headwater.errors import DiskFullError, StorageError
from headwater.steps import reach


def write_temporary(directory: Path, chunks: Iterable[bytes]) -> Path:
    """Write a synced file of a name of its own in `directory`, to be given to `adopt`.

    Raises:
        DiskFullError: no space is left; what was written is removed.
        StorageError: the disk failed otherwise.
    """
    path = directory / f"{uuid4().hex}.part"
    _write_new(path, chunks, mode="xb")
    return path


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path`, durably and whole, when the block ends without an error.

    Several processes may do so at a time: the last one stays.

    Raises:
        DiskFullError: no space is left; a file of that name is as it was.
        StorageError: the disk failed otherwise.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    with disk_errors(path):
        reach("write", path)
        file = temporary.open("xb")
    try:
        with file, disk_errors(path):
            yield file
            sync(file, path)
        adopt(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def clear_unfinished(folder: Path) -> None:
    """Remove what `new_file` and `write` left in a folder that this process alone writes: a process
    that ended in the middle of one leaves its temporary file.

    Raises:
        StorageError: the disk failed.
    """
    with disk_errors(folder):
        left = list(folder.glob(".*.tmp"))
    for path in left:
        remove(path)


def _write_new(path: Path, chunks: Iterable[bytes], *, mode: Literal["xb", "wb"]) -> None:
    with disk_errors(path):
        file = path.open(mode, buffering=0)
    try:
        with file:
            # What the chunks raise is the caller's own, and not a failure of this disk.
            for chunk in chunks:
                with disk_errors(path):
                    reach("write", path)
                    _write_all(file, chunk)
            with disk_errors(path):
                reach("sync", path)
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _temporary_of(path: Path) -> Path:
    """A name that the next write takes again, so that a kill leaves one file at most."""
    return path.with_name(f".{path.name}.tmp")


def adopt(temporary: Path, path: Path) -> None:
    """Give a synced file its final name, durably. A file of that name is replaced.

    Raises:
        StorageError: the disk failed.
    """
    with disk_errors(path):
        reach("rename", path)
        temporary.replace(path)
    sync_folder(path.parent)


def move(temporary: Path, path: Path) -> None:
    """Give a file its final name for this and later processes; power loss may undo or tear it.

    Raises:
        StorageError: the disk failed.
    """
    with disk_errors(path):
        reach("move", path)
        temporary.replace(path)


def link(source: Path, path: Path) -> None:
    """Give a synced file a second name, which is durable once its folder is synced.

    Raises:
        OSError: there is no such file, or these file systems cannot.
    """
    reach("link", path)
    os.link(source, path)


def write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write or replace a file whole, durably. One process may write it at a time.

    Raises:
        DiskFullError: no space is left; the file is as it was.
        StorageError: the disk failed otherwise.
    """
    temporary = _temporary_of(path)
    _write_new(temporary, chunks, mode="wb")
    adopt(temporary, path)


def replace(path: Path, content: bytes) -> None:
    """Replace a file whole for readers at the same time; after power loss it may be lost.

    Raises:
        DiskFullError: no space is left; the file is as it was.
        StorageError: the disk failed otherwise.
    """
    temporary = _temporary_of(path)
    with disk_errors(path):
        reach("replace", path)
        temporary.write_bytes(content)
        temporary.replace(path)


def append(file: BinaryIO, path: Path, *contents: bytes) -> None:
    """Write one after another to a file that grows and is synced later with `sync`.

    Raises:
        DiskFullError: no space is left.
        StorageError: the disk failed otherwise.
    """
    with disk_errors(path):
        reach("write", path)
        for content in contents:
            _write_all(file, content)


def flush(file: BinaryIO, path: Path) -> None:
    """Have the disk begin with what was appended, on another thread than the one that appends.

    Nothing is durable before `sync`, which then has less left to do.

    Raises:
        DiskFullError: no space is left. The file must be given up, as after a `sync` that failed.
        StorageError: the disk failed otherwise. The same holds.
    """
    with disk_errors(path):
        reach("flush", path)
        os.fsync(file.fileno())  # not what Python still buffers: that is its writer's


def sync(file: BinaryIO, path: Path) -> None:
    """Make what was appended to a file durable.

    A file whose sync failed must be given up: the kernel may have dropped what it could not write,
    reads it from memory nevertheless, and lets the next sync pass.

    Raises:
        DiskFullError: no space is left.
        StorageError: the disk failed otherwise.
    """
    with disk_errors(path):
        file.flush()
        reach("sync", path)
        os.fsync(file.fileno())


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, durably; one that is there stays. `mode` is its own.

    Raises:
        DiskFullError: no space is left.
        StorageError: the disk failed otherwise, or a file has that name.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        reach("make folder", path)
        path.mkdir(mode, exist_ok=True)
    sync_folder(path.parent)


def remove(path: Path) -> int:
    """Remove a file, and return its size; 0 when it is not there.

    The folder is not synced: a file that comes back after power loss is removed again later.
    """
    with disk_errors(path):
        reach("remove", path)
        try:
            size_bytes = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
    return size_bytes


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        StorageError: the disk failed.
    """
    with disk_errors(path):
        reach("sync folder", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(file: BinaryIO | FileIO, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[file.write(remaining) :]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the disk's errors in the block into ours, which name the path that failed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space is left to write {path}: free some, then repeat ({error.strerror})"
            ) from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
