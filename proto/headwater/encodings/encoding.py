"""What an encoding is."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.errors import UpdateError


class Encoding(Protocol):
    """How a block of trainable changes becomes bytes. It has settings and no state.

    Every encoding keeps this, for a block of any `count` of at least 1:
    - A block decodes by itself, to float32 of shape [count], on every machine to the same bits.
    - `decode` takes any bytes at all, and gives such values or raises UpdateError. It makes nothing
      larger than the block and its payload on the way.
    - No payload is larger than `maximum_bytes(count)`.
    - Where the change is finite, no value decodes to one that is further than `error_bound` away,
      and a block of zeros decodes to zeros.
    """

    @property
    def name(self) -> str:
        """As it is written on the wire and in the ledger; `encoding_named` gives it back."""

    def encode(self, change: NDArray[np.float32], seed: int) -> bytes:
        """The payload of finite float32 changes of shape [count].

        `seed` (0 to 2**63 - 1) decides what is rounded up and what down, where that is random; the
        same seed gives the same bytes.
        """

    def decode(self, payload: memoryview, count: int) -> NDArray[np.float32]:
        """The float32 changes, of shape [count], which may not be finite.

        Raises:
            UpdateError: the payload is not such a block.
        """

    def maximum_bytes(self, count: int) -> int:
        """The largest payload of a block of `count` values."""

    def error_bound(self, change: NDArray[np.float32]) -> float:
        """How far a value may be from what it decodes to, at most."""


def of_size(payload: memoryview, size_bytes: int) -> memoryview:
    """The payload, when it has this size.

    Raises:
        UpdateError: it has another.
    """
    if len(payload) != size_bytes:
        raise UpdateError(f"a block has {len(payload)} bytes; its values need {size_bytes}")
    return payload


def uniform(seed: int, count: int) -> NDArray[np.float32]:
    """Draws from 0 (included) to 1 (excluded), float32 of shape [count], in steps of 2**-24.

    They are the outputs of Philox4x64-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as
    easy as 1, 2, 3", SC 2011), taken as they come: numpy keeps these from version to version, which
    it does not promise of the distributions made of them.
    """
    words = np.random.Philox(key=seed).random_raw((count + 1) // 2)
    halves = words.astype("<u8", copy=False).view("<u4")[:count]
    draws: NDArray[np.float32] = (halves >> 8).astype(np.float32)
    draws *= np.float32(2**-24)
    return draws
