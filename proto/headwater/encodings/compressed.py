"""Lossless compression after another encoding: `NAME+zstd`.

What is left of an update after quantization is far from uniform: on a trained network's updates
Zstandard's entropy coder takes 20 to 29% more off, at its level 1 and hundreds of megabytes a
second; higher levels and deflate find no more (`python -m benchmarks.codecs`).
"""

from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from headwater.encodings.encoding import Encoding
from headwater.errors import UpdateError

LEVEL = 1
STORED, COMPRESSED = b"\x00", b"\x01"


@dataclass(frozen=True)
class Compressed:
    """Another encoding's payload, compressed where that makes it smaller.

    The payload is a byte, 0 or 1, and then the other payload as it is, or in one Zstandard frame of
    its bytes sorted by their place in the `word` of bytes of a value: those that are alike then lie
    together.
    """

    inner: Encoding
    word: int

    @property
    def name(self) -> str:
        """The other's name, and `+zstd`."""
        return f"{self.inner.name}+zstd"

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """The shorter of the two."""
        payload = self.inner.encode(change, seed)
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(_planes(payload, self.word))
        return STORED + payload if len(packed) >= len(payload) else COMPRESSED + packed

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """What the other decodes."""
        kind, rest = bytes(payload[:1]), payload[1:]
        if kind == STORED:
            return self.inner.decode(rest, count)
        if kind != COMPRESSED:
            raise UpdateError(f"a block of {self.name} begins with {kind!r}")
        unpacked = _words(_decompressed(rest, self.inner.maximum_bytes(count)), self.word)
        return self.inner.decode(memoryview(unpacked), count)

    def maximum_bytes(self, count: int) -> int:
        """The other's, and a byte."""
        return 1 + self.inner.maximum_bytes(count)

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """The other's."""
        return self.inner.error_bound(change)


def _decompressed(packed: memoryview, most: int) -> bytes:
    """The content of a frame that says its size, which is looked at before anything is unpacked."""
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        if size > most:  # also where the frame does not say
            raise UpdateError(f"a compressed block holds {size} bytes; it may hold {most}")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UpdateError(f"a compressed block is damaged: {error}") from error


def _planes(payload: bytes, word: int) -> bytes:
    if word == 1 or len(payload) % word:
        return payload
    return np.frombuffer(payload, np.uint8).reshape(-1, word).T.tobytes()


def _words(planes: bytes, word: int) -> bytes:
    if word == 1 or len(planes) % word:
        return planes
    return np.frombuffer(planes, np.uint8).reshape(word, -1).T.tobytes()
