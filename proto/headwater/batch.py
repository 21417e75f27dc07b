"""One batch of examples, and the signature that its tensors keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorSignature:
    """What one input or target of a model looks like.

    `shape` leaves out the batch dimension. `dtype` is a NumPy name. For integer tensors, values lie
    in `0 <= value < maximum` where `maximum` is set (class labels, token numbers).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    maximum: int | None = None


@dataclass(frozen=True)
class Batch:
    """Some examples: each array has the batch size as its first dimension."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...]

    @property
    def size(self) -> int:
        """The number of examples."""
        return int(self.inputs[0].shape[0])
