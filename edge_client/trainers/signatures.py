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
            numbers of them, an integer outside of its range, or weights that are negative or
            all zero.
    """
    weights = () if batch.weights is None else (batch.weights,)
    for kind, arrays, signatures in (
        ("inputs", batch.inputs, inputs),
        ("targets", batch.targets + weights, targets),
    ):
        if len(arrays) != len(signatures):
            raise DataError(
                f"a batch has {len(arrays)} {kind}; the plan takes {len(signatures)}: "
                + ", ".join(signature.name for signature in signatures)
            )
        for array, signature in zip(arrays, signatures, strict=True):
            _check_array(array, signature, batch.size)
    if batch.weights is not None:
        _check_weights(batch.weights, targets[-1].name)


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


def check_correction(correction: Mapping[str, Array] | None, manifest: Manifest) -> None:
    """Refuse corrections that are not of the plan's trainable tensors.

    Raises:
        PlanError: the plan takes none, or they have other names or shapes.
    """
    if correction is None:
        return
    if not manifest.step.corrections:
        raise PlanError(
            f"plan {manifest.name!r} takes no gradient corrections: compile it with corrections"
        )
    shapes = {name: tuple(array.shape) for name, array in correction.items()}
    if shapes != {spec.name: spec.shape for spec in manifest.layout.trainable}:
        raise PlanError(f"the corrections do not fit plan {manifest.name!r}: they are of another")


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


def _check_weights(weights: Array, name: str) -> None:
    least, total = float(np.min(weights)), float(np.sum(weights, dtype=np.float64))
    if not (least >= 0 and 0 < total < float("inf")):
        raise DataError(
            f"{name!r} of a batch holds the weight {least:g} and weights of {total:g} together: "
            "weights are finite numbers of at least 0, and not all of a batch are 0"
        )
