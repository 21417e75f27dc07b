"""What is special to blobs in a directory; `test_blob_store` has what they share with others."""

import errno
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from headwater import durable_files, steps
from headwater.errors import DiskFullError, StorageError
from storage.blob_directory import BlobDirectory

CONTENT = b"some bytes"
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobDirectory:
    return BlobDirectory(tmp_path / "data" / "blobs")


def fail_at(step: str, number: int = errno.ENOSPC) -> Callable[[str, Path], None]:
    def observer(name: str, path: Path) -> None:
        if name == step:
            raise OSError(number, os.strerror(number))

    return observer


def files(store: BlobDirectory) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_a_blob_is_a_file_named_by_its_digest(store: BlobDirectory) -> None:
    store.write(CONTENT)
    assert store.path(DIGEST) == store.root / DIGEST[:2] / DIGEST
    assert files(store) == [store.path(DIGEST)]
    with store.local(DIGEST) as path:
        assert path == store.path(DIGEST)


def test_strange_files_are_no_blobs(store: BlobDirectory) -> None:
    (store.root / "00").mkdir()
    (store.root / "00" / "stranger").write_text("")
    assert list(store.digests()) == []


def test_each_blob_is_synced_before_its_name_and_its_name_after(store: BlobDirectory) -> None:
    seen: list[tuple[str, str]] = []
    with steps.observed(lambda step, path: seen.append((step, Path(str(path)).suffix))):
        store.write(CONTENT)
    # The first sync of a folder is for the new folder of the two first digits.
    assert seen == [
        ("write", ".part"),
        ("sync", ".part"),
        ("make folder", ""),
        ("sync folder", ""),
        ("rename", ""),
        ("sync folder", ""),
    ]


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_full_disk_leaves_no_blob(store: BlobDirectory, step: str) -> None:
    with (
        steps.observed(fail_at(step)),
        pytest.raises(DiskFullError, match=r"no space is left to write .*: free some, then repeat"),
    ):
        store.write(CONTENT)
    assert not store.exists(DIGEST)
    assert store.write(CONTENT) == DIGEST


def test_a_disk_that_fails_is_named(store: BlobDirectory) -> None:
    with (
        steps.observed(fail_at("sync folder", errno.EIO)),
        pytest.raises(StorageError, match=rf"{store.root}.*: Input/output error"),
    ):
        store.write(CONTENT)


def test_a_writer_that_stops_leaves_nothing(store: BlobDirectory) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some"
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        store.write(chunks())
    assert files(store) == []


def test_what_broken_writes_left_is_removed_when_it_is_old(store: BlobDirectory) -> None:
    durable_files.write_temporary(store.root / "temporary", [b"torn"])
    now = datetime.now(UTC)
    assert store.remove_temporary(now - timedelta(hours=1)) == 0
    assert store.remove_temporary(now + timedelta(hours=1)) == 1
    assert files(store) == []


def test_a_small_file_is_replaced_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    durable_files.write(path, [b"one"])
    with steps.observed(fail_at("sync")), pytest.raises(DiskFullError):
        durable_files.write(path, [b"two"])
    assert path.read_bytes() == b"one"
    durable_files.write(path, [b"two"])
    assert path.read_bytes() == b"two"
    with pytest.raises(StorageError, match="File exists"):
        durable_files.make_folder(path)
