"""What the encoding of a client's updates left out, kept until its next update brings it.

For each (coordinator, job, plan) there is one file: what is to be brought. An update that is made
proposes another, in a file of its own beside that, before it is offered; the coordinator's word on
the update decides which of the two stays: the new one if the update was folded, the old one after
any other fate. So what an update carried is neither lost with it nor brought twice.

An update that is `late` and that a later round folds has its word at its receipt: by the time of
the fold its client has made others.
"""

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from headwater import durable_files
from headwater.errors import StorageError
from headwater.updates import Block

_HEADER = struct.Struct("<8sQQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"residual"
_SUFFIX = ".residual"

_log = logging.getLogger("headwater.client")


@dataclass(frozen=True)
class Residual:
    """What was left out up to a round: float32 of shape [trainable values]."""

    round_number: int
    values: NDArray[np.float32]

    @property
    def norm(self) -> float:
        """Its L2 norm."""
        squares = (np.square(part, dtype=np.float64).sum() for part in _parts(self.values))
        return float(np.sqrt(sum(squares)))


class Proposal:
    """A `Feedback` that reads what is to be brought and writes what is left out, block by block."""

    def __init__(self, old: Residual | None, file: BinaryIO) -> None:
        self.old = old
        self.checksum = 0
        self._file = file

    def before(self, block: Block) -> NDArray[np.float32] | None:
        """See `Feedback.before`."""
        return None if self.old is None else self.old.values[block.place]

    def keep(self, block: Block, residual: NDArray[np.float32]) -> None:
        """See `Feedback.keep`."""
        values = residual.astype("<f4", copy=False).tobytes()
        self.checksum = zlib.crc32(values, self.checksum)
        self._file.write(values)


class Residuals:
    """The residuals of one client, of its latest `kept` jobs: each may be as large as a model, and
    a job has two at most, what is to be brought and what is proposed.

    The folder may have those for other coordinators too: assignments of the same numbers are not
    the same.
    """

    def __init__(self, folder: Path, coordinator: str, kept: int = 4) -> None:
        durable_files.make_folder(folder, 0o700)
        durable_files.clear_unfinished(folder)
        self._folder = folder
        self._home = _hashed(coordinator)
        self._kept = kept

    def awaited(self) -> list[int]:
        """The assignments whose fate is not known."""
        return sorted(int(path.name.split(".")[1]) for path in self._proposals())

    def load(self, job: str, plan_digest: str, *, round_number: int, count: int) -> Residual | None:
        """What the job's update of a round is to bring; None for nothing.

        One that is damaged, has not `count` values, or is not of an earlier round (the coordinator
        began anew, or from a backup) is dropped with a warning.
        """
        path = self._folder / f"{self._key(job, plan_digest)}{_SUFFIX}"
        try:
            return _read(path, round_number, count)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("what earlier updates left out is lost: %s: %s", path, error)
            durable_files.remove(path)
            return None

    @contextmanager
    def proposal(
        self,
        job: str,
        plan_digest: str,
        *,
        assignment_id: int,
        round_number: int,
        count: int,
    ) -> Iterator[Proposal]:
        """Write what a new update leaves out; durable when the block ends without an error.

        Whatever earlier updates of the job proposed is dropped: their fate was not to be folded.

        Raises:
            StorageError: the disk is full or failed.
        """
        key = self._key(job, plan_digest)
        for path in self._folder.glob(f"{key}.*{_SUFFIX}"):
            durable_files.remove(path)
        self._forget_oldest(key)
        old = self.load(job, plan_digest, round_number=round_number, count=count)
        with durable_files.new_file(self._folder / f"{key}.{assignment_id}{_SUFFIX}") as file:
            file.write(_HEADER.pack(_MAGIC, count, round_number))
            proposal = Proposal(old, file)
            yield proposal
            file.write(_CHECKSUM.pack(proposal.checksum))

    def settle(self, assignment_id: int, *, folded: bool) -> None:
        """The coordinator's word on an update: take what it proposed, or drop it.

        A disk that fails is told in the log: the word comes again with the next stream.
        """
        try:
            for path in self._proposals():
                key, number, _ = path.name.split(".")
                if int(number) != assignment_id:
                    continue
                if folded:
                    durable_files.adopt(path, self._folder / f"{key}{_SUFFIX}")
                else:
                    durable_files.remove(path)
        except StorageError as error:
            _log.warning("what an update left out stays undecided: %s", error)

    def _key(self, job: str, plan_digest: str) -> str:
        return f"{self._home}{_hashed(job, plan_digest)}"

    def _proposals(self) -> list[Path]:
        return list(self._folder.glob(f"{self._home}*.*{_SUFFIX}"))

    def _forget_oldest(self, key: str) -> None:
        """Make room for a job of this key.

        Others go whole: without what an update proposes, what it brought would be brought again.
        """
        files: dict[str, list[Path]] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}"), key=os.path.getmtime, reverse=True):
            files.setdefault(path.name.partition(".")[0], []).append(path)
        files.pop(key, None)
        for paths in list(files.values())[self._kept - 1 :]:
            for path in paths:
                durable_files.remove(path)


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read(path: Path, before_round: int, count: int) -> Residual:
    with path.open("rb") as file:
        magic, size, round_number = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size))
        file.seek(-_CHECKSUM.size, os.SEEK_END)
        (checksum,) = _CHECKSUM.unpack(file.read())
    whole = _HEADER.size + 4 * count + _CHECKSUM.size
    if (magic, size) != (_MAGIC, count) or path.stat().st_size != whole:
        raise ValueError(f"it does not hold {count} values")
    if round_number >= before_round:
        raise ValueError(f"it is of round {round_number}, and round {before_round} is under way")
    values: NDArray[np.float32] = np.empty(0, np.float32)
    if count:
        values = np.memmap(path, "<f4", "r", _HEADER.size, (count,))
    found = 0
    for part in _parts(values):
        found = zlib.crc32(part.data, found)
    if found != checksum:
        raise ValueError("its checksum does not hold")
    return Residual(round_number, values)


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, values.size, 2**18):
        yield values[start : start + 2**18]
