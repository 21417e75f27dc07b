"""From trained weights to the frames of an update, with what its encoding left out.

Error feedback: what an encoding loses of a change is added to the next change of the same client,
so that nothing is lost for good (Seide, Fu, Droppo, Li, Yu, "1-Bit Stochastic Gradient Descent and
its Application to Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014;
Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", ICML 2019). It covers the trainable part of the float vector, the only one that is encoded
lossily.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.encodings.encoding import Encoding
from headwater.encodings.names import EXACT
from headwater.errors import UpdateError
from headwater.layout import Layout, Weights
from headwater.updates import Block, Section, blocks_of, frame


class Feedback(Protocol):
    """Where a client keeps what was left out, block by block of the trainable part."""

    def before(self, block: Block) -> NDArray[np.float32] | None:
        """What earlier updates left out of this block, float32 of shape [block.count], or None."""

    def keep(self, block: Block, residual: NDArray[np.float32]) -> None:
        """Take what this update leaves out of the block; blocks come in order, each once."""


class UpdateEncoder:
    """Encodes the update that leads from `base` to `trained`, one block at a time.

    The update's bytes are a function of the weights, the encoding, the seed and what `feedback`
    has from before. `relative_error` is known when all frames have been taken.
    """

    def __init__(
        self,
        base: Weights,
        trained: Weights,
        layout: Layout,
        encoding: Encoding,
        seed: int = 0,
        feedback: Feedback | None = None,
    ) -> None:
        self._base, self._trained = base, trained
        self._blocks = blocks_of(layout)
        self._encoding, self._seed, self._feedback = encoding, seed, feedback
        self._intended_squares = self._error_squares = 0.0

    @property
    def relative_error(self) -> float:
        """The L2 norm of what was left out, over that of what was to be sent; 0 for nothing."""
        if not self._intended_squares:
            return 0.0
        return float(np.sqrt(self._error_squares / self._intended_squares))

    def frames(self) -> Iterator[bytes]:
        """The frames, one for each block.

        Raises:
            UpdateError: a trained value is not finite, or too large for the encoding; the update
                must not be sent.
        """
        for index, block in enumerate(self._blocks):
            if block.section is Section.INTEGERS:
                values = self._trained.integers[block.place]
                yield frame(values.astype("<i8", copy=False).tobytes())
                continue
            change = self._trained.floats[block.place] - self._base.floats[block.place]
            _check_finite(change, "training ended with values that are not finite")
            trainable = block.section is Section.TRAINABLE
            yield frame(self._encoded(index, block, change) if trainable else _exact(change))

    def _encoded(self, index: int, block: Block, change: NDArray[np.float32]) -> bytes:
        before = self._feedback.before(block) if self._feedback else None
        if before is not None:
            change += before
            _check_finite(change, "with what earlier updates left out, the change is not finite")
        payload = self._encoding.encode(change, self._seed ^ index)
        if self._encoding is EXACT and self._feedback is None:
            return payload
        residual = change - self._encoding.decode(memoryview(payload), block.count)
        _check_finite(residual, f"values are too large for the encoding {self._encoding.name}")
        self._intended_squares += _squares(change)
        self._error_squares += _squares(residual)
        if self._feedback:
            self._feedback.keep(block, residual)
        return payload


def _exact(change: NDArray[np.float32]) -> bytes:
    return EXACT.encode(change, 0)


def _squares(values: NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(np.multiply(wide, wide, out=wide).sum())


def _check_finite(values: NDArray[np.float32], fault: str) -> None:
    if not np.isfinite(values).all():
        raise UpdateError(f"{fault} (NaN or infinity)")
