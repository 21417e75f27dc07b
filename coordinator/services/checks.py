"""What a device may say of itself: sizes and forms, checked before anything else is done."""

import re

from headwater.errors import UsageError
from headwater.v1 import fleet_pb2

_DIGEST = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_NAME_CHARACTERS = 100
_ENTRIES = 64


def is_digest(text: str) -> bool:
    """Whether a text is a digest, and so safe to look up."""
    return _DIGEST.fullmatch(text) is not None


def printable(text: str) -> str:
    """What a device wrote, fit for logs, terminals and databases: control characters replaced."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def checked_digest(digest: str) -> str:
    """A digest that is safe to look up; raises UsageError otherwise."""
    if not is_digest(digest):
        raise UsageError(f"{digest[:80]!r} is not a digest: it has 64 hexadecimal digits")
    return digest


def checked_hello(hello: fleet_pb2.Hello) -> None:
    """Refuse an introduction whose fields are malformed or too large.

    Raises:
        UsageError: which field, and what it may be.
    """
    for field in ("client_id", "instance_id"):
        if not _IDENTITY.fullmatch(getattr(hello, field)):
            raise UsageError(f"{field} must be 32 hexadecimal digits")
    for field in ("name", "hostname", "program_version"):
        _check_text(field, getattr(hello, field))
    for field in ("runtime", "device", "platform"):
        _check_text(field, getattr(hello.profile, field))
    if not hello.name:
        raise UsageError("name must not be empty")
    for field, entries in (
        ("tags", hello.tags),
        ("datasets", hello.datasets),
        ("encodings", hello.encodings),
        ("awaited_assignment_ids", hello.awaited_assignment_ids),
    ):
        if len(entries) > _ENTRIES:
            raise UsageError(f"{field} has {len(entries)} entries; at most {_ENTRIES} are allowed")
    for key, value in hello.tags.items():
        _check_text("a tag", key)
        _check_text(f"tag {key}", value)
    for dataset in hello.datasets:
        _check_text("a data set's name", dataset.name)
    for encoding in hello.encodings:
        _check_text("an encoding", encoding)


def _check_text(field: str, text: str) -> None:
    if len(text) > _NAME_CHARACTERS or not text.isprintable():
        raise UsageError(f"{field} must be printable and at most {_NAME_CHARACTERS} characters")
