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


def test_a_blob_is_named_by_its_digest(store: BlobDirectory) -> None:
    assert store.write(CONTENT) == DIGEST
    assert store.write(iter([b"some ", b"bytes"])) == DIGEST
    assert store.path(DIGEST) == store.root / DIGEST[:2] / DIGEST
    assert files(store) == [store.path(DIGEST)]
    assert store.read(DIGEST) == CONTENT and store.size(DIGEST) == len(CONTENT)
    with store.open(DIGEST) as file:
        assert file.read(4) == b"some"


def test_deleting_twice_is_no_failure(store: BlobDirectory) -> None:
    store.write(CONTENT)
    assert store.delete(DIGEST) == len(CONTENT)
    assert store.delete(DIGEST) == 0
    assert not store.exists(DIGEST) and store.modified_at(DIGEST) is None


def test_a_synced_file_is_taken_over(store: BlobDirectory) -> None:
    temporary = durable_files.write_temporary(store.root, [CONTENT])
    store.adopt(temporary, DIGEST)
    assert not temporary.exists() and store.read(DIGEST) == CONTENT


def test_all_digests_are_listed_in_order(store: BlobDirectory) -> None:
    digests = [store.write(str(number).encode()) for number in range(20)]
    (store.root / "00").mkdir(exist_ok=True)
    (store.root / "00" / "stranger").write_text("")
    assert list(store.digests()) == sorted(digests)


def test_missing_and_damaged_blobs_are_told(store: BlobDirectory) -> None:
    for ask in (store.read, store.size, store.open):
        with pytest.raises(StorageError, match=f"blob {DIGEST} is missing from"):
            ask(DIGEST)
    store.write(CONTENT)
    store.path(DIGEST).write_bytes(b"other bytes")
    with pytest.raises(StorageError, match=f"blob {DIGEST} in .* is damaged"):
        store.read(DIGEST)
    assert store.read(DIGEST, verify=False) == b"other bytes"
    store.write(CONTENT)
    assert store.read(DIGEST) == CONTENT


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "\n"])
def test_only_digests_name_blobs(store: BlobDirectory, name: str) -> None:
    with pytest.raises(StorageError, match="is no SHA-256 digest"):
        store.path(name)


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
