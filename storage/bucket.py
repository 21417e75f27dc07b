"""A bucket as its URL names it, and what its client's errors say; decisions without I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from headwater.errors import UsageError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_FORM = (
    "s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=REGION, the parts after BUCKET optional"
)


@dataclass(frozen=True)
class Bucket:
    """A place in an S3-compatible store. `endpoint` and `region` are empty for the client's own."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    @property
    def place(self) -> str:
        """How messages call it."""
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.name}/{self.prefix}".rstrip("/") + at


def bucket_of(url: str, environment: Mapping[str, str]) -> Bucket:
    """Read a URL; an endpoint that it does not name is the environment's.

    Raises:
        UsageError: it is no such URL. It is not repeated where it may hold a secret.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise UsageError(f"--blobs {url!r}: write {_FORM}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or query.keys() - {"endpoint", "region"}:
        raise UsageError(
            f"--blobs: write {_FORM}. Credentials come from AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY: a command line is seen by others"
        )
    found = (environment[name] for name in ENDPOINTS if environment.get(name))
    endpoint = query.get("endpoint") or next(found, "")
    if endpoint and not (
        urlsplit(endpoint).scheme in ("http", "https") and urlsplit(endpoint).hostname
    ):
        raise UsageError(
            f"the endpoint {endpoint!r} of --blobs: write http://HOST:PORT or https://HOST"
        )
    return Bucket(
        parts.netloc, parts.path.strip("/"), endpoint.rstrip("/"), query.get("region", "")
    )


METADATA_HOST = "169.254.169.254"
"""Where a cloud's machines get credentials: asked when the environment has none."""

_ADVICE = {
    "NoSuchBucket": "create the bucket, or name another in --blobs",
    "AccessDenied": "the credentials lack a right on this bucket",
    "InvalidAccessKeyId": "see AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "see AWS_SECRET_ACCESS_KEY",
}


def reason_of(text: str) -> str:
    """What an error of the client says, without its addresses, times and traces.

    Told again, the same failure reads the same.
    """
    if METADATA_HOST in text:
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    told = re.search(r"<Code>(\w+)</Code>(?:.*?<Message>(.*?)</Message>)?", text, re.DOTALL)
    if told is None:
        line = text.partition("\n")[0].rpartition(" - ")[2]
        return f"the object store does not answer ({line})"
    code, message = told.groups("")
    advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
    return f"the object store refuses: {code}: {message}{advice}"
