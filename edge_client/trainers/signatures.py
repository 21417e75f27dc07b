"""Holds batches and optimizer state against what a plan expects, before a runtime sees them."""

from collections.abc import Mapping, Sequence

import numpy as np

from headwater.batch import Array, Batch, TensorSignature
from headwater.errors import DataError, PlanError
from headwater.manifest import Manifest


def check_batch(
    batch: Batch, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> None:
    """Refuse a batch that the plan's graphs cannot take.

    Raises:
        DataError: another number of tensors, another shape or dtype, no examples or unequal
            numbers of them, or an integer outside of its range.
    """
    for kind, arrays, signatures in (
        ("inputs", batch.inputs, inputs),
        ("targets", batch.targets, targets),
    ):
        if len(arrays) != len(signatures):
            raise DataError(
                f"a batch has {len(arrays)} {kind}; the plan takes {len(signatures)}: "
                + ", ".join(signature.name for signature in signatures)
            )
        for array, signature in zip(arrays, signatures, strict=True):
            _check_array(array, signature, batch.size)


def check_optimizer_state(state: Mapping[str, Array], manifest: Manifest) -> None:
    """Refuse slots that are not those of the plan's optimizer.

    Raises:
        PlanError: other names or shapes.
    """
    shapes = {name: tuple(array.shape) for name, array in state.items()}
    if shapes != {slot.value_name: slot.shape for slot in manifest.optimizer.slots}:
        raise PlanError(
            f"the optimizer state does not fit plan {manifest.name!r}: it is of another plan; "
            "reset the optimizer"
        )


def _check_array(array: Array, signature: TensorSignature, examples: int) -> None:
    expected = (examples, *signature.shape)
    if tuple(array.shape) != expected or examples == 0:
        raise DataError(
            f"{signature.name!r} of a batch has shape {tuple(array.shape)}; the plan takes "
            f"(examples, {', '.join(map(str, signature.shape))}) with at least one example and the "
            "same number of examples in every tensor"
        )
    if array.dtype.name != signature.dtype:
        raise DataError(
            f"{signature.name!r} of a batch has dtype {array.dtype}; the plan takes "
            f"{signature.dtype}"
        )
    if signature.maximum is not None and array.size:
        low, high = int(np.min(array)), int(np.max(array))
        if low < 0 or high >= signature.maximum:
            raise DataError(
                f"{signature.name!r} of a batch has the value {low if low < 0 else high}; the plan "
                f"takes 0 to {signature.maximum - 1}"
            )
