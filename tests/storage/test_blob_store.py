"""The contract of `BlobStore`, over every store: a directory, a bucket, and a bucket whose blobs
have no copies on this machine."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from headwater import durable_files
from headwater.errors import BlobError, StorageError
from storage.blob_place import open_blobs
from storage.blob_store import BlobStore, relative_path
from tests.s3 import S3Server, overwrite

CONTENT = b"some bytes"
DIGEST = sha256(CONTENT).hexdigest()


class Place:
    """A store, and what others can do to it."""

    def __init__(self, folder: Path, url: str | None, cache_bytes: int) -> None:
        self.folder = folder
        self.url = url
        self.cache_bytes = cache_bytes
        self.store = self.opened("first")

    def opened(self, process: str) -> BlobStore:
        """The store as a process sees it that begins without copies."""
        return open_blobs(self.url, self.folder / "blobs", self.folder / process, self.cache_bytes)

    def temporary(self, content: bytes) -> Path:
        """A synced file on the data directory's file system."""
        return durable_files.write_temporary(self.folder, [content])

    def damage(self, digest: str, content: bytes) -> None:
        """Other bytes where a blob was, as of a disk that fails."""
        if self.url is None:
            (self.folder / "blobs" / relative_path(digest)).write_bytes(content)
        else:
            overwrite(self.url, relative_path(digest), content)


@pytest.fixture(params=["directory", "bucket", "bucket without copies"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return Place(tmp_path, None, 0)
    server: S3Server = request.getfixturevalue("s3_server")
    return Place(tmp_path, server.new_bucket(), 2**20 if request.param == "bucket" else 0)


@pytest.fixture
def store(place: Place) -> BlobStore:
    return place.store


def test_a_blob_is_named_by_its_digest(place: Place) -> None:
    assert place.store.write(CONTENT) == DIGEST
    assert place.store.write(iter([b"some ", b"bytes"])) == DIGEST
    for store in (place.store, place.opened("second")):
        assert list(store.digests()) == [DIGEST]
        assert store.exists(DIGEST) and store.size(DIGEST) == len(CONTENT)
        assert store.read(DIGEST) == store.read(DIGEST, verify=False) == CONTENT
        with store.open(DIGEST) as file:
            assert file.read(4) == b"some"
            assert file.seek(0, 2) == len(CONTENT)
        with store.local(DIGEST) as path:
            assert path.read_bytes() == CONTENT


def test_the_empty_blob_is_one(store: BlobStore) -> None:
    digest = store.write(b"")
    assert store.read(digest) == b"" and store.size(digest) == 0 and store.exists(digest)


def test_a_blob_of_many_parts_is_whole(place: Place) -> None:
    chunks = [bytes([number]) * 2**20 for number in range(23)]
    digest = place.store.write(iter(chunks))
    assert digest == sha256(b"".join(chunks)).hexdigest()
    assert place.opened("second").read(digest) == b"".join(chunks)


def test_what_was_opened_stays_readable(store: BlobStore) -> None:
    store.write(CONTENT)
    with store.local(DIGEST) as path:
        file = path.open("rb")
    with file, store.open(DIGEST) as other:
        store.delete(DIGEST)
        assert file.read() == other.read() == CONTENT


def test_deleting_twice_is_no_failure(place: Place) -> None:
    place.store.write(CONTENT)
    assert place.store.delete(DIGEST) == len(CONTENT)
    assert place.store.delete(DIGEST) == 0
    for store in (place.store, place.opened("second")):
        assert not store.exists(DIGEST) and store.modified_at(DIGEST) is None
        assert list(store.digests()) == []


def test_a_synced_file_is_taken_over(place: Place) -> None:
    temporary = place.temporary(CONTENT)
    place.store.adopt(temporary, DIGEST)
    assert not temporary.exists()
    assert place.opened("second").read(DIGEST) == CONTENT


def test_a_prepared_file_is_no_blob_yet(store: BlobStore) -> None:
    temporary, digest = store.prepare([CONTENT])
    assert digest == DIGEST and not store.exists(DIGEST)
    store.adopt(temporary, digest)
    assert store.read(DIGEST) == CONTENT


def test_all_digests_are_listed_in_order(store: BlobStore) -> None:
    digests = [store.write(str(number).encode()) for number in range(20)]
    assert list(store.digests()) == sorted(digests)


def test_missing_blobs_are_told(store: BlobStore) -> None:
    def local(digest: str) -> object:
        with store.local(digest) as path:
            return path

    for ask in (store.read, store.size, store.open, local):
        with pytest.raises(BlobError, match=f"blob {DIGEST} is missing from {store.place}"):
            ask(DIGEST)
    store.write(CONTENT)
    assert store.read(DIGEST) == CONTENT


def test_damaged_blobs_are_told_and_mended_by_writing(place: Place) -> None:
    place.store.write(CONTENT)
    place.damage(DIGEST, b"other bytes")
    other = place.opened("second")
    with pytest.raises(BlobError, match=f"blob {DIGEST} in {other.place} is damaged"):
        other.read(DIGEST)
    assert other.size(DIGEST) == len(b"other bytes")
    place.store.write(CONTENT)
    assert other.read(DIGEST) == CONTENT


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "\n"])
def test_only_digests_name_blobs(store: BlobStore, name: str) -> None:
    for ask in (store.read, store.size, store.exists, store.delete, store.modified_at):
        with pytest.raises(StorageError, match="is no SHA-256 digest"):
            ask(name)
    with pytest.raises(StorageError, match="is no SHA-256 digest"), store.local(name):
        pass


def test_a_writer_that_stops_leaves_nothing(place: Place) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some"
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        place.store.write(chunks())
    assert list(place.store.digests()) == []
    assert [path for path in place.folder.rglob("*") if path.is_file()] == []


def test_when_a_blob_was_kept(store: BlobStore) -> None:
    """By the store's clock, which is this machine's in tests; buckets know whole seconds."""
    before = datetime.now(UTC) - timedelta(seconds=2)
    store.write(CONTENT)
    kept = store.modified_at(DIGEST)
    assert kept is not None and before < kept < datetime.now(UTC) + timedelta(seconds=2)


def test_what_broken_writes_left_is_removed_when_it_is_old(place: Place) -> None:
    temporary, _ = place.store.prepare([b"torn"])
    now = datetime.now(UTC)
    assert place.store.remove_temporary(now - timedelta(hours=1)) == 0
    assert place.store.remove_temporary(now + timedelta(hours=1)) == 1
    assert not temporary.exists()
