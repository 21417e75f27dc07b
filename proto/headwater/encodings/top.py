"""The encoding that keeps the largest changes alone: `topk`.

Aji, Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017; Stich,
Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, who show that it converges when what
was left out is added to the next change (error feedback), and only then. We depart in one point:
the largest are taken of each block and not of the whole model, so that a block decodes by itself.

Their places are an Elias-Fano sequence (Elias, "Efficient Storage and Retrieval by Content and
Address of Static Files", JACM 1974; Fano 1971): the lower bits of each place as they are, the upper
ones as the gaps between them in unary. It takes less than 2 + log2(count / kept) bits a place, at
1% under 9, however the places lie.
"""

import struct
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import Encoding, of_size
from headwater.errors import UpdateError

_KEPT = struct.Struct("<I")


@dataclass(frozen=True)
class Top:
    """The largest `fraction` of each block's changes (at least one), written by `values`.

    The payload is how many they are (uint32), the lower bits of their places, the bits of the gaps,
    and the values in the order of their places.
    """

    fraction: float
    values: Encoding

    @property
    def name(self) -> str:
        """`topk:FRACTION`, with the encoding of the values where it is not bf16."""
        suffix = "" if self.values.name == "bf16" else f":{self.values.name}"
        return f"topk:{self.fraction!r}{suffix}"

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """What is kept; zeros never are."""
        places = self._largest(change)
        kept = change[places]
        values = self.values.encode(kept, seed) if kept.size else b""
        return _KEPT.pack(kept.size) + _written(places, change.size) + values

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """The values at their places, and zeros."""
        change = np.zeros(count, np.float32)
        if len(payload) < _KEPT.size:
            raise UpdateError(f"a block of the largest changes has {len(payload)} bytes")
        (kept,) = _KEPT.unpack(payload[: _KEPT.size])
        if kept > self.most(count):
            raise UpdateError(f"a block keeps {kept} of {count} values; {self.name} keeps fewer")
        if kept == 0:
            of_size(payload, _KEPT.size)
            return change
        end = _KEPT.size + _places_bytes(kept, count)
        if len(payload) < end:
            raise UpdateError(f"a block ends before its {kept} places")
        places = _read(payload[_KEPT.size : end], kept, count)
        change[places] = self.values.decode(payload[end:], kept)
        return change

    def most(self, count: int) -> int:
        """How many of so many values are kept at most."""
        return max(1, min(count, ceil(self.fraction * count)))

    def maximum_bytes(self, count: int) -> int:
        """With as many values as may be kept."""
        most = self.most(count)
        return _KEPT.size + _places_bytes(most, count) + self.values.maximum_bytes(most)

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """The largest change that is left out, or what the values' encoding costs."""
        places = self._largest(change)
        if not places.size:
            return 0.0
        left = np.abs(change)
        left[places] = 0
        return max(float(left.max()), self.values.error_bound(change[places]))

    def _largest(self, change: NDArray[np.float32]) -> NDArray[np.intp]:
        # Of those that are as large as the least one the first are kept: which ones a partition of
        # places would take differs from processor to processor.
        sizes, most = np.abs(change), self.most(change.size)
        least = np.partition(sizes, change.size - most)[change.size - most]
        if least == 0:
            return np.flatnonzero(sizes)
        larger, alike = np.flatnonzero(sizes > least), np.flatnonzero(sizes == least)
        return np.sort(np.concatenate((larger, alike[: most - larger.size])))


def _lower_bits(kept: int, count: int) -> int:
    """How many bits of a place are written as they are."""
    return max(0, (count // kept).bit_length() - 1)


def _gap_bits(kept: int, count: int) -> int:
    """A one for each place, and a zero for each step of the upper bits."""
    return kept + (count - 1 >> _lower_bits(kept, count)) + 1


def _places_bytes(kept: int, count: int) -> int:
    lower = (kept * _lower_bits(kept, count) + 7) // 8
    return lower + (_gap_bits(kept, count) + 7) // 8


def _written(places: NDArray[np.intp], count: int) -> bytes:
    if not places.size:
        return b""
    width = _lower_bits(places.size, count)
    lower = (places[:, None] >> np.arange(width)) & 1
    gaps = np.zeros(_gap_bits(places.size, count), np.uint8)
    gaps[(places >> width) + np.arange(places.size)] = 1
    return b"".join(
        np.packbits(bits.reshape(-1), bitorder="little").tobytes()
        for bits in (lower.astype(np.uint8), gaps)
    )


def _read(packed: memoryview, kept: int, count: int) -> NDArray[np.intp]:
    """The places, ascending and below `count`.

    Raises:
        UpdateError: they are not.
    """
    width = _lower_bits(kept, count)
    lower_bytes = (kept * width + 7) // 8
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    lower = bits[: kept * width].reshape(kept, width).astype(np.intp) << np.arange(width)
    ones = np.flatnonzero(bits[8 * lower_bytes :])
    if ones.size != kept:
        raise UpdateError(f"a block has {ones.size} places for {kept} values")
    places: NDArray[np.intp] = (ones - np.arange(kept) << width) + lower.sum(axis=1)
    if places[-1] >= count or (np.diff(places) <= 0).any():
        raise UpdateError("a block's places do not ascend within it")
    return places
