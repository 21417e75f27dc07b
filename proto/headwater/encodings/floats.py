"""Encodings that keep each value as a float of its own: `fp32` and `bf16`."""

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import of_size

LARGEST_BFLOAT16 = np.uint32(0x7F7F0000)
"""The bits, as a float32's, of the largest finite bfloat16."""

SMALLEST_BFLOAT16 = 2.0**-133
"""The smallest bfloat16 above 0: what lies below it may become 0."""

_SIGN = np.uint32(0x80000000)
_FRACTION = np.uint32(0xFFFF)


class Float32:
    """`fp32`: the values as they are, little-endian; no error, 4 bytes a value."""

    name = "fp32"

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """The raw values."""
        return change.astype("<f4", copy=False).tobytes()

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """A view of the raw values."""
        return np.frombuffer(of_size(payload, 4 * count), "<f4")

    def maximum_bytes(self, count: int) -> int:
        """Four bytes a value."""
        return 4 * count

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """None."""
        return 0.0


class Bfloat16:
    """`bf16`: the upper half of each float32, rounded to the nearest, ties to even; 2 bytes each.

    Eight bits of precision are left, over the whole range of float32. A value beyond the largest
    bfloat16 becomes that, and never infinite.
    """

    name = "bf16"

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """The upper halves."""
        bits = change.astype("<f4", copy=False).view("<u4")
        even = (bits >> 16) & 1
        return upper_halves(_bounded(bits + (np.uint32(0x7FFF) + even), bits)).tobytes()

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """The values, with zeros for the lower halves."""
        return from_upper_halves(np.frombuffer(of_size(payload, 2 * count), "<u2"))

    def maximum_bytes(self, count: int) -> int:
        """Two bytes a value."""
        return 2 * count

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """The last bit that is left of the largest value: a whole one, for the very end."""
        return float(np.abs(change).max()) * 2.0**-8 + SMALLEST_BFLOAT16


def rounded_up(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The least bfloat16 that is not below each value of at least 0, as its upper half.

    What lies beyond the largest one becomes that.
    """
    bits = values.astype("<f4", copy=False).view("<u4")
    return upper_halves(_bounded(bits + _FRACTION, bits))


def upper_halves(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """The upper halves of float32 bits, little-endian uint16."""
    return (bits >> 16).astype("<u2")


def from_upper_halves(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16s."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _bounded(rounded: NDArray[np.uint32], bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Rounded magnitudes with the signs of `bits`, none above the largest bfloat16."""
    bounded: NDArray[np.uint32] = np.minimum(rounded & ~_SIGN, LARGEST_BFLOAT16) | (bits & _SIGN)
    return bounded
