"""One batch of examples, and the signature that its tensors keep."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.preparation import Image, Text, labels_fault

Array = NDArray[np.generic]

PIXEL_VALUES = 256
_ANY_TABLE = 2
"""For integers without a stated bound: 0 and 1 fit every table of two rows or more."""


@dataclass(frozen=True)
class TensorSignature:
    """What one input or target of a model looks like in a batch.

    `shape` leaves out the batch dimension. `dtype` is a NumPy name. For integer tensors, values lie
    in `0 <= value < maximum` where `maximum` is set (class labels, token numbers).

    At most one of `image`, `text` and `labels` says what the stored values are: images arrive as
    uint8 and are made float32 by the plan's graphs; texts become their characters' numbers, and
    names their place in `labels`, both int64.

    `is_weight` marks what weights the examples in the loss: float32 of shape (), at least 0, the
    last of the targets.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    maximum: int | None = None
    image: Image | None = None
    text: Text | None = None
    labels: tuple[str, ...] = ()
    is_weight: bool = False

    @property
    def generated_below(self) -> int:
        """Generated integers lie below this: the maximum, or what fits every model."""
        return self.maximum or (PIXEL_VALUES if self.image else _ANY_TABLE)

    def fault(self) -> str:
        """How its parts contradict one another; empty where they don't."""
        kinds = [one for one in (self.image, self.text, self.labels or None) if one is not None]
        if len(kinds) > 1:
            return "only one of image, text and labels can be"
        if self.image is not None:
            return self._dtype_fault("image", "uint8") or self.image.fault(self.shape)
        if self.text is not None:
            fault = self._dtype_fault("text", "int64") or self.text.fault(self.shape)
            return fault or self._maximum_fault(len(self.text.characters), "characters")
        if self.labels:
            fault = self._dtype_fault("labels", "int64") or labels_fault(self.labels)
            return fault or self._maximum_fault(len(self.labels), "labels")
        return ""

    def _dtype_fault(self, kind: str, dtype: str) -> str:
        return "" if self.dtype == dtype else f"{kind} goes with {dtype}, not {self.dtype}"

    def _maximum_fault(self, count: int, what: str) -> str:
        if self.maximum is None or self.maximum >= count:
            return ""
        return f"maximum is {self.maximum} with {count} {what}"


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
