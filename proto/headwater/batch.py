"""One batch of examples, and the signature that its tensors keep."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorSignature:
    """What one input or target of a model looks like.

    `shape` leaves out the batch dimension. `dtype` is a NumPy name. For integer tensors, values lie
    in `0 <= value < maximum` where `maximum` is set (class labels, token numbers). `is_weight`
    marks what weights the examples in the loss: float32 of shape (), at least 0, the last of the
    targets.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    maximum: int | None = None
    is_weight: bool = False


@dataclass(frozen=True)
class Batch:
    """Some examples: each array has the batch size as its first dimension.

    `weights` is float32 [batch] where the plan weights examples, else None.
    """

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...]
    weights: Array | None = None

    @property
    def size(self) -> int:
        """The number of examples."""
        return int(self.inputs[0].shape[0])

    @property
    def mass(self) -> float:
        """What its means count for among those of other batches: examples, or their weights."""
        return float(self.size if self.weights is None else np.sum(self.weights, dtype=np.float64))

    def part(self, start: int, stop: int) -> "Batch":
        """Views of the examples from `start` to before `stop`."""
        weights = None if self.weights is None else self.weights[start:stop]
        return Batch(
            tuple(array[start:stop] for array in self.inputs),
            tuple(array[start:stop] for array in self.targets),
            weights,
        )


def batch_of(
    inputs: Iterable[Array], targets: Iterable[Array], signatures: Sequence[TensorSignature]
) -> Batch:
    """A batch from arrays in the order of the plan; `signatures` are those of its targets."""
    targets = tuple(targets)
    if signatures and signatures[-1].is_weight:
        return Batch(tuple(inputs), targets[:-1], targets[-1])
    return Batch(tuple(inputs), targets)
