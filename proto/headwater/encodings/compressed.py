"""Lossless compression after another encoding: `NAME+zstd`.

What is left of an update after quantization is far from uniform: on a trained network's updates
Zstandard's entropy coder takes 20 to 29% more off, at its level 1 and hundreds of megabytes a
second; higher levels and deflate find no more (`python -m benchmarks.codecs`).
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import Encoding
from headwater.errors import UpdateError

if sys.version_info >= (3, 14):
    from compression import zstd
else:  # the same module, for the Pythons that came before it
    from backports import zstd

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
        packed = zstd.compress(_planes(payload, self.word), level=LEVEL)
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
        size = zstd.get_frame_info(packed).decompressed_size
        if size is None or size > most:
            raise UpdateError(f"a compressed block holds {size} bytes; it may hold {most}")
        decompressor = zstd.ZstdDecompressor()
        content = decompressor.decompress(packed, max_length=most)
    except zstd.ZstdError as error:
        raise UpdateError(f"a compressed block is damaged: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise UpdateError("a compressed block does not end where its frame does")
    return content


def _planes(payload: bytes, word: int) -> bytes:
    if word == 1 or len(payload) % word:
        return payload
    return np.frombuffer(payload, np.uint8).reshape(-1, word).T.tobytes()


def _words(planes: bytes, word: int) -> bytes:
    if word == 1 or len(planes) % word:
        return planes
    return np.frombuffer(planes, np.uint8).reshape(word, -1).T.tobytes()
