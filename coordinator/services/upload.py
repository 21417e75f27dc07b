"""One update on its way in: a spool file that survives a restart, checked frame by frame.

A spool file belongs to one assignment and one announced digest. What counts after a restart is only
what is read back from disk and verified again.
"""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from coordinator.services.write_behind import WriteBehind
from headwater import durable_files
from headwater.encodings.encoding import Encoding
from headwater.errors import StorageError, UpdateError
from headwater.layout import Layout
from headwater.updates import (
    FRAME_HEADER,
    Block,
    Section,
    blocks_of,
    decode_block,
    decode_integers,
    maximum_payload_bytes,
    verified_frames,
)


class Upload:
    """Receives an update's frames in order. Blocking: never on the event loop.

    `offset_bytes` is the size of the verified part, always at the end of a frame.

    Raises (all methods):
        UpdateError: a frame or the whole is not what was announced.
        DiskFullError, StorageError: the spool file cannot be written.
    """

    def __init__(self, path: Path, layout: Layout, encoding: Encoding, digest: str) -> None:
        self.path = path
        self.encoding = encoding
        self.digest = digest
        self._blocks = blocks_of(layout)
        self._begin()
        with durable_files.disk_errors(path):
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._resume()
        self._behind = WriteBehind(self._file, path)

    @property
    def norm(self) -> float:
        """Euclidean length of the trainable change received so far."""
        return float(np.sqrt(self._squares))

    @property
    def complete(self) -> bool:
        """Whether every block has come."""
        return self._received == len(self._blocks)

    def append(self, checksum: int, payload: bytes) -> None:
        """Check one frame and put it behind the others: one that is refused too, as evidence."""
        header = FRAME_HEADER.pack(len(payload), checksum)
        try:
            if self.complete:
                raise UpdateError(f"the update has more than its {len(self._blocks)} blocks")
            if zlib.crc32(payload) != checksum:
                raise UpdateError(f"block {self._received} does not match its checksum")
            self._take(self._blocks[self._received], header, payload)
        finally:
            durable_files.append(self._file, self.path, header, payload)
            self._behind.wrote(len(header) + len(payload))

    def finish(self) -> None:
        """Make the whole durable on disk, once its digest is what was announced."""
        if not self.complete:
            raise UpdateError(
                f"the update ended after {self._received} of {len(self._blocks)} blocks"
            )
        if self._hash.hexdigest() != self.digest:
            raise UpdateError(
                f"the update has the digest {self._hash.hexdigest()}; {self.digest} was announced"
            )
        with self._given_up_on_failure():
            self._behind.end()
            durable_files.sync(self._file, self.path)
        self._file.close()

    def pause(self) -> None:
        """Close the file and keep it, if it can be trusted: the client may send the rest later."""
        with self._given_up_on_failure():
            self._behind.end()
        with durable_files.disk_errors(self.path):
            self._file.close()

    def discard(self) -> None:
        """Close and remove the file."""
        with suppress(StorageError):
            self._behind.end()
        with suppress(OSError):  # what did not fit on the disk is not wanted any more
            self._file.close()
        durable_files.remove(self.path)

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        """Keep no file that failed to reach the disk: what is read back would look sound."""
        try:
            yield
        except StorageError:
            self.discard()
            raise

    def _begin(self) -> None:
        self._received = 0
        self._squares = np.float64(0)
        self._hash = hashlib.sha256()
        self.offset_bytes = 0

    def _resume(self) -> None:
        try:
            for payload, block in zip(self._stored(), self._blocks, strict=False):
                self._take(block, FRAME_HEADER.pack(len(payload), zlib.crc32(payload)), payload)
        except UpdateError:  # it was damaged while no one looked: begin again
            self._begin()
        self._file.seek(self.offset_bytes)
        self._file.truncate()

    def _stored(self) -> Iterator[bytes]:
        return verified_frames(self._file, self._blocks)

    def _take(self, block: Block, header: bytes, payload: bytes) -> None:
        if len(payload) > maximum_payload_bytes(block, self.encoding):
            raise UpdateError(f"block {self._received} has {len(payload)} bytes, which is too many")
        if block.section is Section.INTEGERS:
            decode_integers(block, memoryview(payload))
        else:
            change = decode_block(block, memoryview(payload), self.encoding)
            if block.section is Section.TRAINABLE:
                wide = change.astype(np.float64)
                self._squares += np.multiply(wide, wide, out=wide).sum()
        self._hash.update(header)
        self._hash.update(payload)
        self.offset_bytes += len(header) + len(payload)
        self._received += 1
