"""How an update is written: blocks, each in a frame with its checksum.

An update is the change of the trainable tensors and of the floating buffers, and the new value of
the integer buffers (which are never averaged, so a change would say nothing). The three sections
are cut into blocks of `BLOCK_ELEMENTS`; no block spans two sections, so that only trainable values
ever meet a lossy encoding. The stored form is one frame for each block:

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
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Weights

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


class Encoding(Protocol):
    """How one block of trainable changes becomes bytes; every block decodes by itself."""

    name: str

    def encode(self, change: NDArray[np.float32]) -> bytes:
        """The payload of a block of float32 changes."""

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """The float32 changes; raises UpdateError where the payload is not such a block."""

    def maximum_bytes(self, count: int) -> int:
        """The largest payload of a block of `count` values."""


class Exact:
    """`fp32`: the values as they are, little-endian; no error, 4 bytes a value."""

    name = "fp32"

    def encode(self, change: NDArray[np.float32]) -> bytes:
        """The raw values."""
        return change.astype("<f4", copy=False).tobytes()

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """A view of the raw values."""
        return np.frombuffer(_of_size(payload, 4 * count), "<f4")

    def maximum_bytes(self, count: int) -> int:
        """Four bytes a value."""
        return 4 * count


ENCODINGS: dict[str, Encoding] = {"fp32": Exact()}
"""The encodings that this program can read and write, by their names on the wire."""


def encoding_named(name: str) -> Encoding:
    """The encoding of that name; raises UpdateError where this program does not know it."""
    if name not in ENCODINGS:
        raise UpdateError(f"unknown update encoding {name!r}; known: {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


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


def encode_update(
    base: Weights, trained: Weights, layout: Layout, encoding: Encoding
) -> Iterator[bytes]:
    """The frames of the update that leads from `base` to `trained`, one for each block.

    Raises:
        UpdateError: a trained value is not finite; the update must not be sent.
    """
    for block in blocks_of(layout):
        if block.section is Section.INTEGERS:
            yield frame(trained.integers[block.place].astype("<i8", copy=False).tobytes())
            continue
        change = trained.floats[block.place] - base.floats[block.place]
        if not np.isfinite(change).all():
            raise UpdateError("training ended with values that are not finite (NaN or infinity)")
        kept = encoding if block.section is Section.TRAINABLE else ENCODINGS["fp32"]
        yield frame(kept.encode(change))


def decode_block(block: Block, payload: memoryview, encoding: Encoding) -> NDArray[np.float32]:
    """The float32 change of a block of the float vector.

    Raises:
        UpdateError: the payload is not such a block, or a value is not finite.
    """
    kept = encoding if block.section is Section.TRAINABLE else ENCODINGS["fp32"]
    change = kept.decode(payload, block.count)
    if not np.isfinite(change).all():
        at = int(np.flatnonzero(~np.isfinite(change))[0]) + block.start
        raise UpdateError(f"value {at} of the update is not finite (NaN or infinity)")
    return change


def decode_integers(block: Block, payload: memoryview) -> NDArray[np.int64]:
    """The new values of a block of integer buffers; raises UpdateError on a wrong size."""
    return np.frombuffer(_of_size(payload, 8 * block.count), "<i8")


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


def _of_size(payload: memoryview, size_bytes: int) -> memoryview:
    if len(payload) != size_bytes:
        raise UpdateError(f"a block has {len(payload)} bytes; its values need {size_bytes}")
    return payload
