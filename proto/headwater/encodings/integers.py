"""Encodings that keep each value as a few bits, with a scale for each group: `int8` and `int4`.

Rounding is stochastic: a value between two steps goes to either with the probability that makes the
mean right, so that the errors of many clients cancel (Alistarh, Grubic, Li, Tomioka, Vojnovic,
"QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017). We depart
from it in two points: the scale is the largest value of a short group and not the norm of the
whole, so that one large layer does not drown the others; and codes have a fixed width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import of_size, uniform
from headwater.encodings.floats import SMALLEST_BFLOAT16, from_upper_halves, rounded_up

SCALE_BYTES = 2


@dataclass(frozen=True)
class Integers:
    """Whole multiples of a scale, of `bits` (8 or 4) each, in groups of `group` values.

    The payload is the scales, bfloat16, and then the codes: int8, or two to a byte, the first in
    the lower half, each with 8 added. A scale is the group's largest size divided by the largest
    code, rounded up, so that no code is out of range.
    """

    name: str
    bits: int
    group: int

    @property
    def largest(self) -> int:
        """The largest code: 127 or 7; the smallest is its negative."""
        return (1 << self.bits - 1) - 1

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """The scales and the codes."""
        groups = self._groups(change)
        scales = self._scales(groups)
        steps = from_upper_halves(scales)[:, None]
        # A group of zeros has the scale 0: its codes are 0 / 1.
        exact = np.divide(groups, np.where(steps > 0, steps, 1), dtype=np.float32)
        exact += uniform(seed, exact.size).reshape(exact.shape)
        np.floor(exact, out=exact)
        np.clip(exact, -self.largest, self.largest, out=exact)
        codes = exact.astype(np.int8).reshape(-1)[: change.size]
        return scales.tobytes() + self._packed(codes)

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """Codes times scales."""
        of_size(payload, self.maximum_bytes(count))
        at = SCALE_BYTES * self._group_count(count)
        steps = from_upper_halves(np.frombuffer(payload[:at], "<u2"))
        codes = self._groups(self._unpacked(payload[at:], count).astype(np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # who reads it looks for what overflowed
            codes *= steps[:, None]
        return codes.reshape(-1)[:count]

    def maximum_bytes(self, count: int) -> int:
        """Two bytes a group, and the codes; every payload has this size."""
        return SCALE_BYTES * self._group_count(count) + (count * self.bits + 7) // 8

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """The largest step."""
        steps = from_upper_halves(self._scales(self._groups(change)))
        return float(steps.max()) + SMALLEST_BFLOAT16

    def _group_count(self, count: int) -> int:
        return -(-count // self.group)

    def _groups(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values as rows of a group each; the last is filled up with zeros."""
        groups = np.zeros((self._group_count(values.size), self.group), np.float32)
        groups.reshape(-1)[: values.size] = values
        return groups

    def _scales(self, groups: NDArray[np.float32]) -> NDArray[np.uint16]:
        return rounded_up(np.abs(groups).max(axis=1) / np.float32(self.largest))

    def _packed(self, codes: NDArray[np.int8]) -> bytes:
        if self.bits == 8:
            return codes.tobytes()
        halves = np.full((codes.size + 1) // 2 * 2, 8, np.uint8)
        np.add(codes, 8, out=halves[: codes.size], casting="unsafe")
        return (halves[::2] | halves[1::2] << 4).tobytes()

    def _unpacked(self, packed: memoryview, count: int) -> NDArray[np.int8]:
        if self.bits == 8:
            return np.frombuffer(packed, np.int8)
        pairs = np.frombuffer(packed, np.uint8)
        codes = np.empty((pairs.size, 2), np.int8)
        codes[:, 0], codes[:, 1] = pairs & 15, pairs >> 4
        codes -= 8
        return codes.reshape(-1)[:count]


INT8 = Integers("int8", 8, 256)
INT4 = Integers("int4", 4, 64)
