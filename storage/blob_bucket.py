"""Blobs in a bucket of an S3-compatible object store, with copies on this machine."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from headwater import durable_files
from headwater.errors import BlobError, StorageError
from headwater.steps import reach
from storage.blob_cache import BlobCache
from storage.blob_store import is_digest, relative_path
from storage.bucket import Bucket, reason_of

if TYPE_CHECKING:  # there is nothing of these at run time
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

CHUNK_BYTES = 2**20
CONCURRENT_PARTS = 4
"""Of 5 MiB, which one upload has in memory and on its way at a time."""

_RETRY: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
"""Hiccups alone: whoever called waits and tries again where the store stays away."""
_PATIENCE: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "24h"}
"""A transfer may take long, and is given up on when it stands still or a part needs a minute."""


class BlobBucket:
    """A `BlobStore` in a bucket: objects `ab/abcdef…` under the store's prefix.

    An object appears whole when its upload has ended. What a killed upload of many parts leaves
    in the bucket is invisible, and a lifecycle rule of the bucket has to remove it.
    """

    def __init__(self, bucket: Bucket, cache: BlobCache) -> None:
        self._objects = _client(bucket)
        self._place = bucket.place
        self._cache = cache

    @property
    def place(self) -> str:
        """See `BlobStore.place`."""
        return self._place

    def check(self) -> None:
        """Look whether the bucket answers.

        Raises:
            StorageError: it does not exist, the credentials are wrong, or nobody answers.
        """
        with self._failures():
            for _ in obstore.list(self._objects, prefix="none"):
                break

    def write(self, content: bytes | Iterable[bytes]) -> str:
        """See `BlobStore.write`."""
        temporary, digest = self.prepare([content] if isinstance(content, bytes) else content)
        try:
            self.adopt(temporary, digest)
        except BaseException:
            durable_files.remove(temporary)
            raise
        return digest

    def prepare(self, content: Iterable[bytes]) -> tuple[Path, str]:
        """See `BlobStore.prepare`."""
        return self._cache.directory.prepare(content)

    def adopt(self, temporary: Path, digest: str) -> None:
        """See `BlobStore.adopt`. The file becomes the local copy once the bucket has it."""
        path = relative_path(digest)
        reach("put", path)
        with self._failures():
            obstore.put(self._objects, path, temporary, max_concurrency=CONCURRENT_PARTS)
        reach("stored", path)
        self._cache.adopt(temporary, digest)

    def local(self, digest: str) -> AbstractContextManager[Path]:
        """See `BlobStore.local`. The bytes were held against the digest."""
        return self._cache.local(digest, partial(self._fetched, digest))

    def open(self, digest: str) -> BinaryIO:
        """See `BlobStore.open`."""
        with self.local(digest) as path, durable_files.disk_errors(path):
            return path.open("rb")

    def read(self, digest: str, *, verify: bool = True) -> bytes:
        """See `BlobStore.read`. They were checked when they came."""
        with self.open(digest) as file:
            return file.read()

    def size(self, digest: str) -> int:
        """See `BlobStore.size`."""
        found = self._head(digest)
        if found is None:
            raise self._missing(digest)
        return found["size"]

    def exists(self, digest: str) -> bool:
        """See `BlobStore.exists`. The bucket is asked, whatever copies there are."""
        return self._head(digest) is not None

    def delete(self, digest: str) -> int:
        """See `BlobStore.delete`."""
        found = self._head(digest)
        reach("delete", relative_path(digest))
        with self._failures():
            obstore.delete(self._objects, relative_path(digest))
        self._cache.delete(digest)
        return found["size"] if found else 0

    def digests(self) -> Iterator[str]:
        """See `BlobStore.digests`. Object stores list by name."""
        with self._failures():
            for batch in obstore.list(self._objects):
                for one in batch:
                    folder, _, name = one["path"].partition("/")
                    if is_digest(name) and folder == name[:2]:
                        yield name

    def modified_at(self, digest: str) -> datetime | None:
        """See `BlobStore.modified_at`."""
        found = self._head(digest)
        return found["last_modified"] if found else None

    def remove_temporary(self, before: datetime) -> int:
        """See `BlobStore.remove_temporary`: those on this machine."""
        return self._cache.directory.remove_temporary(before)

    def _head(self, digest: str) -> "ObjectMeta | None":
        path = relative_path(digest)
        with self._failures(), suppress(FileNotFoundError):
            return obstore.head(self._objects, path)
        self.check()  # a bucket that is gone has told the same
        return None

    def _fetched(self, digest: str) -> Iterator[bytes]:
        with self._failures(), suppress(FileNotFoundError):
            found = obstore.get(self._objects, relative_path(digest))
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
            return
        self.check()
        raise self._missing(digest)

    def _missing(self, digest: str) -> BlobError:
        return BlobError(f"blob {digest} is missing from {self.place}: restore a backup")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise StorageError(f"{self.place}: {reason_of(str(error))}") from error


def _client(bucket: Bucket) -> S3Store:
    """The client; what the URL leaves open is the environment's (`AWS_ACCESS_KEY_ID`, …)."""
    options: ClientConfig = {**_PATIENCE, "allow_http": bucket.endpoint.startswith("http://")}
    config: S3Config = {}
    if bucket.endpoint:
        config["aws_endpoint_url_s3"] = bucket.endpoint
    if bucket.region:
        config["region"] = bucket.region
    return S3Store(
        bucket.name,
        prefix=bucket.prefix or None,
        config=config,
        client_options=options,
        retry_config=_RETRY,
    )
