"""Exclusive use of a database file or a data directory by one process of this machine."""

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from headwater.errors import HeldError


class FileHold:
    """A lock on a file that tells who has it. The operating system ends it with the process.

    Raises:
        HeldError: another process has it; the message names it.
    """

    def __init__(self, path: Path, holder: str, subject: str) -> None:
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._descriptor, 4096, 0)
            self.release()
            raise HeldError(_refusal(subject, text)) from None
        # The file stays when the hold ends: were it removed, two processes could each lock a file
        # of this name.
        _rewrite(self._descriptor, _claim(holder))

    def release(self) -> None:
        """Give it up. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def hold_directory(directory: Path, holder: str) -> FileHold:
    """Claim a data directory, which exists.

    Raises:
        HeldError: another process has it; the message names it.
    """
    return FileHold(directory / "hold", holder, f"the data directory {directory}")


def refusal(subject: str, holder: str, host: str, pid: int | str) -> str:
    """What someone is told who wants what another process holds."""
    return (
        f"{subject} is in use by {holder} (process {pid} on {host}): stop it first, or use another"
    )


def _refusal(subject: str, text: bytes) -> str:
    try:
        claim = json.loads(text)
        return refusal(subject, claim["holder"], claim["host"], claim["pid"])
    except (ValueError, KeyError, TypeError):
        # The other has locked the file and not written it yet.
        return refusal(subject, "another process", "this machine", "unknown")


def _claim(holder: str) -> bytes:
    claim = {"holder": holder, "host": socket.gethostname(), "pid": os.getpid()}
    return json.dumps(claim).encode()


def _rewrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
