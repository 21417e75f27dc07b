"""How an update is written: blocks, each in a frame with its checksum.

An update is the change of the trainable tensors and of the floating buffers, and the new value of
the integer buffers (which are never averaged, so a change would say nothing). The three sections
are cut into blocks of `BLOCK_ELEMENTS`; no block spans two sections, so that only trainable values
ever meet a lossy encoding (`headwater.encodings`) and buffers travel exact. The stored form is one
frame for each block:

    payload size (uint32) | CRC-32 of the payload (uint32) | payload        all little-endian

The update's digest is the SHA-256 of all frames.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import Encoding, of_size
from headwater.encodings.names import EXACT
from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout

FRAME_HEADER = struct.Struct("<II")


class Section(StrEnum):
    """Which run of values a block is cut from."""

    TRAINABLE = "trainable"
    BUFFERS = "buffers"
    INTEGERS = "integers"


@dataclass(frozen=True)
class Block:
    """A run of `count` values. `start` counts in the float vector, or in the integer vector."""

    section: Section
    start: int
    count: int

    @property
    def place(self) -> slice:
        """Where the block lies in its vector."""
        return slice(self.start, self.start + self.count)


def blocks_of(layout: Layout) -> tuple[Block, ...]:
    """The blocks of an update of this layout, in their order on the wire."""
    cuts = (
        (Section.TRAINABLE, 0, layout.trainable_count),
        (Section.BUFFERS, layout.trainable_count, layout.float_count),
        (Section.INTEGERS, 0, layout.integer_count),
    )
    return tuple(
        Block(section, at, min(BLOCK_ELEMENTS, end - at))
        for section, start, end in cuts
        for at in range(start, end, BLOCK_ELEMENTS)
    )


def maximum_payload_bytes(block: Block, encoding: Encoding) -> int:
    """The largest payload that this block may have."""
    if block.section is Section.TRAINABLE:
        return encoding.maximum_bytes(block.count)
    return block.count * (8 if block.section is Section.INTEGERS else 4)


def maximum_update_bytes(layout: Layout, encoding: Encoding) -> int:
    """The largest size of a whole update, frames included."""
    return sum(
        FRAME_HEADER.size + maximum_payload_bytes(block, encoding) for block in blocks_of(layout)
    )


def frame(payload: bytes) -> bytes:
    """The stored form of a payload."""
    return FRAME_HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode_block(block: Block, payload: memoryview, encoding: Encoding) -> NDArray[np.float32]:
    """The float32 change of a block of the float vector.

    Raises:
        UpdateError: the payload is not such a block, or a value is not finite.
    """
    kept = encoding if block.section is Section.TRAINABLE else EXACT
    change = kept.decode(payload, block.count)
    if not np.isfinite(change).all():
        at = int(np.flatnonzero(~np.isfinite(change))[0]) + block.start
        raise UpdateError(f"value {at} of the update is not finite (NaN or infinity)")
    return change


def decode_integers(block: Block, payload: memoryview) -> NDArray[np.int64]:
    """The new values of a block of integer buffers; raises UpdateError on a wrong size."""
    return np.frombuffer(of_size(payload, 8 * block.count), "<i8")


def verified_frames(file: BinaryIO, blocks: tuple[Block, ...]) -> Iterator[bytes]:
    """Payloads read from where `file` stands, as long as each is whole and its checksum holds."""
    for _ in blocks:
        header = file.read(FRAME_HEADER.size)
        if len(header) < FRAME_HEADER.size:
            return
        size, checksum = FRAME_HEADER.unpack(header)
        payload = file.read(size) if size <= 8 * BLOCK_ELEMENTS else b""
        if len(payload) != size or zlib.crc32(payload) != checksum:
            return
        yield payload


class StoredUpdate:
    """An update in a file, of which one block at a time is in memory.

    Blocks are read and not mapped: pages of a map stay resident, so that a fold of many updates
    would seem to need the memory of them all. No file stays open between two blocks.

    Raises (also when a block is read):
        UpdateError: the file's frames are not those of an update of this layout, or are damaged.
    """

    def __init__(self, path: Path, layout: Layout, encoding: Encoding) -> None:
        self.blocks = blocks_of(layout)
        self.encoding = encoding
        self._path = path
        with path.open("rb", buffering=0) as file:
            self._payloads = list(self._index(file))

    def change(self, index: int) -> NDArray[np.float32]:
        """The float32 change of a block of the float vector."""
        return decode_block(self.blocks[index], self._payload(index), self.encoding)

    def integers(self, index: int) -> NDArray[np.int64]:
        """The new values of a block of the integer vector."""
        return decode_integers(self.blocks[index], self._payload(index))

    def _payload(self, index: int) -> memoryview:
        at, size, checksum = self._payloads[index]
        with self._path.open("rb", buffering=0) as file:
            payload = os.pread(file.fileno(), size, at)
        if len(payload) != size or zlib.crc32(payload) != checksum:
            raise UpdateError(f"block {index} of update {self._path.name} is damaged on disk")
        return memoryview(payload)

    def _index(self, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        """Where each payload lies, its size and its checksum."""
        name, total, at = self._path.name, os.fstat(file.fileno()).st_size, 0
        for block in self.blocks:
            if total - at < FRAME_HEADER.size:
                raise UpdateError(f"update {name} ends before its last block")
            size, checksum = FRAME_HEADER.unpack(os.pread(file.fileno(), FRAME_HEADER.size, at))
            at += FRAME_HEADER.size
            if size > min(maximum_payload_bytes(block, self.encoding), total - at):
                raise UpdateError(f"update {name} has a block of {size} bytes, which is too many")
            yield at, size, checksum
            at += size
        if at != total:
            raise UpdateError(f"update {name} has {total - at} bytes after its last block")
