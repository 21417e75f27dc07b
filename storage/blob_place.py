"""Which store of blobs an operator means: the data directory's, or a bucket named by a URL."""

import os
from pathlib import Path

from headwater.errors import require
from storage.blob_directory import BlobDirectory
from storage.blob_store import BlobStore
from storage.bucket import bucket_of

BLOBS = "blobs"
"""The folder of blobs in a data directory."""
BLOB_CACHE = "blob-cache"
"""The folder of a coordinator's copies of a bucket's blobs, in its data directory."""
CACHE_BYTES = 10 * 2**30
"""What local copies of a bucket's blobs take by default, beside those in use."""


def open_blobs(url: str | None, directory: Path, cache: Path, cache_bytes: int) -> BlobStore:
    """The store that a URL names, or the folder `directory` where there is none.

    `cache` is the folder of a bucket's local copies, on the file system of the data directory.

    Raises:
        UsageError: the URL is wrong.
        MissingExtraError: the client of object stores is not installed.
        StorageError: the bucket does not exist or does not answer, or the credentials are wrong.
    """
    if not url:
        return BlobDirectory(directory)
    bucket = bucket_of(url, os.environ)
    require("obstore", extra="s3", purpose="keep blobs in an object store")
    # Imported here: without the extra, the directory must work.
    from storage.blob_bucket import BlobBucket
    from storage.blob_cache import BlobCache

    store = BlobBucket(bucket, BlobCache(cache, cache_bytes, bucket.place))
    store.check()
    return store
