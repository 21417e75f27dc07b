"""Signatures of inputs and targets: random data that fits them, and bounds that the trace shows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx

from coordinator.compiler.losses import CLASSIFICATION, Loss, class_dimension
from coordinator.compiler.trace import TracedStep
from headwater.batch import Array, Batch, TensorSignature, batch_of
from headwater.errors import CompileError

DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")


def check_signatures(signatures: Sequence[TensorSignature]) -> None:
    """Refuse what no plan can say.

    Raises:
        CompileError: a dtype that plans do not carry, or parts that contradict one another.
    """
    for one in signatures:
        if one.dtype not in DTYPES:
            raise CompileError(
                f"{one.name!r} has dtype {one.dtype!r}; allowed: {', '.join(DTYPES)}"
            )
        if fault := one.fault():
            raise CompileError(f"{one.name!r}: {fault}")
    names = [one.name for one in signatures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CompileError(f"two inputs or targets are named {twice[0]!r}: rename one")


def check_counts(batch_size: int, seed: int) -> None:
    """Refuse numbers that are none.

    Raises:
        CompileError: which one, and what it must be.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CompileError(f"{name} is {value!r}: give a whole number of at least {least}")


def random_batch(
    inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature], size: int, seed: int
) -> Batch:
    """Values that the signatures allow: normal floats, uniform integers below the maximum, bytes
    of images. The examples' weights lie between 0.5 and 1.5.
    """
    draw = np.random.default_rng(seed)
    return batch_of(
        [_drawn(signature, size, draw) for signature in inputs],
        [_drawn(signature, size, draw) for signature in targets],
        targets,
    )


def _drawn(signature: TensorSignature, size: int, draw: np.random.Generator) -> Array:
    shape = (size, *signature.shape)
    if signature.is_weight:
        return draw.random(shape, np.float32) + np.float32(0.5)
    if signature.dtype == "float32":
        return draw.standard_normal(shape, np.float32)
    high = 2 if signature.dtype == "bool" else signature.generated_below
    return draw.integers(0, high, shape).astype(signature.dtype)


def bounded_inputs(
    inputs: Sequence[TensorSignature], training: TracedStep
) -> tuple[TensorSignature, ...]:
    """Integer inputs that index an embedding get its number of rows for a maximum.

    Raises:
        CompileError: the stated maximum is larger than the embedding.
    """
    nodes = dict(zip(training.inputs, training.placeholders, strict=True))
    found = []
    for index, signature in enumerate(inputs):
        rows = _rows(nodes[f"x{index}"])
        if rows is None:
            found.append(signature)
            continue
        if signature.maximum is not None and signature.maximum > rows:
            raise CompileError(
                f"input {signature.name!r} has values up to {signature.maximum - 1}; the model's "
                f"embedding has {rows} rows"
            )
        found.append(replace(signature, maximum=signature.maximum or rows))
    return tuple(found)


def _rows(node: fx.Node) -> int | None:
    """The size of the smallest table that is indexed by this value as it is."""
    tables = [
        int(user.args[0].meta["val"].shape[0])  # type: ignore[union-attr]
        for user in node.users
        if user.target is torch.ops.aten.embedding.default and user.args[1] is node
    ]
    return min(tables, default=None)


def bounded_targets(
    loss: Loss, targets: Sequence[TensorSignature], evaluation: TracedStep
) -> tuple[TensorSignature, ...]:
    """A classification loss fixes the number of classes, which the model's output shows.

    Raises:
        CompileError: the stated maximum is another number.
    """
    by_class = isinstance(loss, str) and loss in CLASSIFICATION
    if not by_class or not targets or targets[0].dtype == "float32":
        return tuple(targets)
    output: Tensor = evaluation.results["output"].meta["val"]
    nodes = dict(zip(evaluation.inputs, evaluation.placeholders, strict=True))
    classes = int(output.shape[class_dimension(output, nodes["y0"].meta["val"])])
    first = targets[0]
    if first.labels and len(first.labels) != classes:
        raise CompileError(
            f"target {first.name!r} has {len(first.labels)} labels; the model's output has "
            f"{classes} classes: name each of them"
        )
    if first.maximum is not None and first.maximum > classes:
        raise CompileError(
            f"target {first.name!r} has values up to {first.maximum - 1}; the model's output has "
            f"{classes} classes"
        )
    return (replace(first, maximum=first.maximum or classes), *targets[1:])
