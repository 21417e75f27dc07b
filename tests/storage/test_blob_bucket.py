"""What is special to blobs in a bucket: its URL, and a store that refuses or is away."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from headwater import durable_files
from headwater.errors import MissingExtraError, StorageError, UsageError
from storage.blob_place import CACHE_BYTES, open_blobs
from storage.blob_store import BlobStore, relative_path
from storage.bucket import Bucket, bucket_of, reason_of
from tests.s3 import S3Server, overwrite

CONTENT = b"some bytes"
DIGEST = sha256(CONTENT).hexdigest()
Opened = Callable[..., BlobStore]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Open a store by its URL, in a process without copies."""

    def make(url: str, process: str = "first", cache_bytes: int = CACHE_BYTES) -> BlobStore:
        return open_blobs(url, tmp_path / "blobs", tmp_path / process, cache_bytes)

    return make


@pytest.mark.parametrize(
    ("url", "environment", "bucket"),
    [
        ("s3://b", {}, Bucket("b")),
        ("s3://b/", {}, Bucket("b")),
        ("s3://b/some/prefix/", {}, Bucket("b", "some/prefix")),
        (
            "s3://b/p?endpoint=http://host:9000/&region=eu",
            {"AWS_ENDPOINT_URL": "https://other"},
            Bucket("b", "p", "http://host:9000", "eu"),
        ),
        ("s3://b", {"AWS_ENDPOINT_URL": "https://one"}, Bucket("b", "", "https://one")),
        (
            "s3://b",
            {"AWS_ENDPOINT_URL": "https://one", "AWS_ENDPOINT_URL_S3": "https://two"},
            Bucket("b", "", "https://two"),
        ),
    ],
)
def test_what_a_url_names(url: str, environment: dict[str, str], bucket: Bucket) -> None:
    assert bucket_of(url, environment) == bucket


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/var/blobs", "--blobs '/var/blobs': write s3://BUCKET/PREFIX"),
        ("s3:///prefix", "write s3://BUCKET/PREFIX"),
        ("gs://bucket", "write s3://BUCKET/PREFIX"),
        (
            "s3://b?endpoint=host:9000",
            "the endpoint 'host:9000' of --blobs: write http://HOST:PORT",
        ),
        ("s3://b?endpoint=http://", "write http://HOST:PORT"),
        ("s3://b?zone=1", "write s3://BUCKET/PREFIX"),
        ("s3://key:hidden@b", "Credentials come from AWS_ACCESS_KEY_ID"),
        ("s3://b?secret_access_key=hidden", "Credentials come from AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_wrong_url_is_told_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        bucket_of(url, {})
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_extra_is_named_where_it_is_missing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_client(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", no_client)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[s3\]'"):
        opened("s3://bucket")


def test_a_bucket_that_does_not_exist_is_told_at_once(opened: Opened, s3_server: S3Server) -> None:
    with pytest.raises(StorageError) as caught:
        opened(f"s3://nowhere/prefix?endpoint={s3_server.endpoint}")
    assert str(caught.value) == (
        f"s3://nowhere/prefix at {s3_server.endpoint}: the object store refuses: NoSuchBucket: The "
        "specified bucket does not exist; create the bucket, or name another in --blobs"
    )


def test_wrong_credentials_are_told_at_once(
    opened: Opened, tmp_path: Path, s3_server: S3Server
) -> None:
    """By a server that lets the bucket be made and then looks who asks."""
    strict = S3Server(tmp_path, {"INITIAL_NO_AUTH_ACTION_COUNT": "1"})
    try:
        with pytest.raises(StorageError, match=r"refuses: InvalidAccessKeyId: .*; see AWS_ACCESS"):
            opened(strict.new_bucket())
    finally:
        strict.end()


def test_nobody_at_the_endpoint_is_told_at_once(opened: Opened, s3_server: S3Server) -> None:
    url = s3_server.new_bucket()
    with s3_server.away(), pytest.raises(StorageError, match="does not answer") as caught:
        opened(url)
    assert "\n" not in str(caught.value) and s3_server.endpoint in str(caught.value)


def test_a_store_that_is_away_keeps_what_it_had_and_is_used_again(
    opened: Opened, tmp_path: Path, s3_server: S3Server
) -> None:
    """While it is away nothing is lost, nothing is told to be missing, and a copy can be read."""
    url = s3_server.new_bucket()
    store = opened(url)
    store.write(CONTENT)
    other, waiting = opened(url, "second"), durable_files.write_temporary(tmp_path, [b"new"])
    new = sha256(b"new").hexdigest()
    with s3_server.away():
        for ask in (other.read, store.size, store.exists, store.delete, store.modified_at):
            with pytest.raises(StorageError, match="does not answer"):
                ask(DIGEST)
        for ask in (lambda: store.adopt(waiting, new), lambda: list(store.digests())):
            with pytest.raises(StorageError, match="does not answer"):
                ask()
        assert store.read(DIGEST) == CONTENT
        assert waiting.read_bytes() == b"new"
        with pytest.raises(StorageError):
            store.write(b"third")
    assert not store.exists(new)
    store.adopt(waiting, new)
    assert other.read(DIGEST) == CONTENT and other.read(new) == b"new"
    assert list((tmp_path / "first" / "temporary").iterdir()) == []


def test_a_bucket_that_is_gone_is_no_missing_blob(opened: Opened, s3_server: S3Server) -> None:
    """An update that is missing is left out of its round: one behind a lost bucket must not be."""
    store = opened(s3_server.new_bucket(), cache_bytes=0)
    s3_server.remove_bucket(store.place)
    for ask in (store.read, store.size, store.exists, store.modified_at):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            ask(DIGEST)
    with pytest.raises(StorageError, match="NoSuchBucket"):
        store.write(CONTENT)


def test_other_objects_under_the_prefix_are_left_alone(opened: Opened, s3_server: S3Server) -> None:
    url = s3_server.new_bucket()
    store = opened(url)
    store.write(CONTENT)
    overwrite(url, "readme", b"ours")
    overwrite(url, f"zz/{DIGEST}", b"not there")
    overwrite(url.replace("/some/prefix", "/some/other"), relative_path("0" * 64), b"another's")
    assert list(store.digests()) == [DIGEST]


def test_blobs_lie_as_in_a_directory(opened: Opened, s3_server: S3Server) -> None:
    """So that `aws s3 sync` moves a data directory's blobs into a bucket, or back."""
    url = s3_server.new_bucket()
    overwrite(url, relative_path(DIGEST), CONTENT)
    assert opened(url).read(DIGEST) == CONTENT


def test_a_failure_reads_the_same_each_time() -> None:
    text = (
        "Generic S3 error: Error performing PUT http://h:1/b/k in 617.852338ms, after 3 retries, "
        "max_retries: 3, retry_timeout: 10s  - HTTP error: error sending request\n\nDebug source:\n"
    )
    assert reason_of(text) == "the object store does not answer (HTTP error: error sending request)"
    assert "no credentials" in reason_of("Error performing PUT http://169.254.169.254/latest/api")
    assert reason_of("<Code>SlowDown</Code>") == "the object store refuses: SlowDown: "
