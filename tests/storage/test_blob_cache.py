"""Copies of blobs on this machine: fetched once, verified, bounded, and never lost in use."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from threading import Barrier, Thread

import pytest

from headwater.errors import BlobError, StorageError
from storage.blob_cache import BlobCache


class Source:
    """What is fetched, and how often."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {sha256(one).hexdigest(): one for one in contents}
        self.fetches: list[str] = []

    def __getitem__(self, number: int) -> str:
        return list(self.contents)[number]

    def fetch(self, digest: str) -> Iterable[bytes]:
        self.fetches.append(digest)
        yield self.contents[digest]

    def use(self, cache: BlobCache, digest: str) -> bytes:
        with cache.local(digest, lambda: self.fetch(digest)) as path:
            return path.read_bytes()


def held(cache: BlobCache) -> set[str]:
    return set(cache.directory.digests())


@pytest.fixture
def source() -> Source:
    return Source(b"first", b"other", b"third")


def test_a_blob_is_fetched_once(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 100, "there")
    assert source.use(cache, source[0]) == source.use(cache, source[0]) == b"first"
    assert source.fetches == [source[0]]


def test_what_was_used_last_stays(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 10, "there")
    for number in (0, 1, 0, 2):
        source.use(cache, source[number])
    assert held(cache) == {source[0], source[2]}
    assert source.fetches == [source[0], source[1], source[2]]


def test_what_is_in_use_stays_beyond_the_bound(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 5, "there")
    with cache.local(source[0], lambda: source.fetch(source[0])) as first:
        for number in (1, 2):
            source.use(cache, source[number])
        with cache.local(source[0], lambda: source.fetch(source[0])):
            pass
        assert first.read_bytes() == b"first"
        assert held(cache) == {source[0]}
    source.use(cache, source[1])
    assert held(cache) == {source[1]}


def test_a_blob_larger_than_the_bound_is_there_while_in_use(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 0, "there")
    assert source.use(cache, source[0]) == b"first"
    assert held(cache) == set()


def test_a_transfer_that_was_damaged_is_repeated(tmp_path: Path, source: Source) -> None:
    good = source.contents[source[0]]
    cache = BlobCache(tmp_path, 100, "there")
    deliveries = iter([b"torn!", good])
    with cache.local(source[0], lambda: [next(deliveries)]) as path:
        assert path.read_bytes() == good


def test_damage_is_told_and_not_kept(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 100, "there")
    with (
        pytest.raises(BlobError, match=f"blob {source[0]} in there is damaged"),
        cache.local(source[0], lambda: [b"torn!"]),
    ):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert source.use(cache, source[0]) == b"first"


def test_a_fetch_that_fails_is_tried_again_by_the_next(tmp_path: Path, source: Source) -> None:
    def failing() -> Iterable[bytes]:
        yield b"fi"
        raise StorageError("away")

    cache = BlobCache(tmp_path, 100, "there")
    with pytest.raises(StorageError, match="away"), cache.local(source[0], failing):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert source.use(cache, source[0]) == b"first"


def test_copies_of_a_former_process_are_read_again(tmp_path: Path, source: Source) -> None:
    """Whole ones are used, damaged ones are fetched, and all count for the bound."""
    before = BlobCache(tmp_path, 100, "there")
    for number in (0, 1, 2):
        source.use(before, source[number])
    before.directory.path(source[1]).write_bytes(b"wrong")
    source.fetches.clear()
    cache = BlobCache(tmp_path, 15, "there")
    assert [source.use(cache, source[number]) for number in (0, 1)] == [b"first", b"other"]
    assert source.fetches == [source[1]]
    assert source.use(BlobCache(tmp_path, 5, "there"), source[2]) == b"third"
    assert held(cache) == {source[2]}


def test_what_is_taken_over_is_not_fetched(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 100, "there")
    temporary, digest = cache.directory.prepare([b"first"])
    cache.adopt(temporary, digest)
    assert source.use(cache, digest) == b"first" and source.fetches == []


def test_what_is_deleted_while_it_is_fetched_is_not_left(tmp_path: Path, source: Source) -> None:
    cache = BlobCache(tmp_path, 100, "there")

    def fetch() -> Iterable[bytes]:
        yield b"first"
        cache.delete(source[0])

    with cache.local(source[0], fetch) as path:
        assert path.read_bytes() == b"first"
    assert held(cache) == set()


def test_threads_that_want_a_blob_fetch_it_once(tmp_path: Path, source: Source) -> None:
    cache, start, seen = BlobCache(tmp_path, 0, "there"), Barrier(8), []

    def want() -> None:
        start.wait()
        with cache.local(source[0], lambda: source.fetch(source[0])) as path:
            seen.append(path.read_bytes())
            together.wait()  # so that one of them uses it all the time

    together = Barrier(8)
    threads = [Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"first"] * 8 and source.fetches == [source[0]]
    assert held(cache) == set()
