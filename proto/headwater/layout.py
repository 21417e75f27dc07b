"""How a model's tensors lie in flat vectors: the one order that everything else relies on.

The *float vector* holds the trainable tensors and then the averaged floating buffers; the *integer
vector* holds the integer buffers. Within each run tensors are sorted by name, so a layout is a
function of its set of tensors. Frozen and local tensors are no part of a vector: the first travel
once with the plan, the second never leave the device.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from headwater.batch import Array
from headwater.errors import PlanError

BLOCK_ELEMENTS = 2**18
"""Elements in a block, the unit of encoding, transfer, checksum and folding (1 MiB of float32)."""


class Role(StrEnum):
    """What a tensor is for, which decides whether and how it travels."""

    TRAINABLE = "trainable"
    FROZEN = "frozen"
    AVERAGED_BUFFER = "averaged_buffer"
    LOCAL = "local"


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a model. `positive` marks variances, which a fold must leave above 0."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    positive: bool = False

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """The values of a model: `floats` is float32 and `integers` int64, both one-dimensional."""

    floats: NDArray[np.float32]
    integers: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The order and offsets of a model's tensors.

    Raises:
        PlanError: two tensors share a name, or a travelling tensor has another dtype than float32
            (or int64 for an averaged buffer).
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for spec in self.tensors:
            if spec.name in seen:
                raise PlanError(f"the layout names the tensor {spec.name!r} twice")
            seen.add(spec.name)
            _check_dtype(spec)

    @cached_property
    def trainable(self) -> tuple[TensorSpec, ...]:
        """Trainable tensors, in vector order."""
        return self._sorted(Role.TRAINABLE, "float32")

    @cached_property
    def float_buffers(self) -> tuple[TensorSpec, ...]:
        """Averaged floating buffers, in vector order."""
        return self._sorted(Role.AVERAGED_BUFFER, "float32")

    @cached_property
    def integer_buffers(self) -> tuple[TensorSpec, ...]:
        """Integer buffers, in vector order; never averaged, whatever the rule."""
        return self._sorted(Role.AVERAGED_BUFFER, "int64")

    @cached_property
    def trainable_count(self) -> int:
        """Elements of the trainable part, which opens the float vector."""
        return sum(spec.count for spec in self.trainable)

    @cached_property
    def float_count(self) -> int:
        """Elements of the whole float vector."""
        return self.trainable_count + sum(spec.count for spec in self.float_buffers)

    @cached_property
    def integer_count(self) -> int:
        """Elements of the integer vector."""
        return sum(spec.count for spec in self.integer_buffers)

    @property
    def size_bytes(self) -> int:
        """Bytes of the travelling values."""
        return 4 * self.float_count + 8 * self.integer_count

    def float_slices(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each tensor of the float vector with its place there."""
        return _slices(self.trainable + self.float_buffers)

    def integer_slices(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each tensor of the integer vector with its place there."""
        return _slices(self.integer_buffers)

    def flatten(self, arrays: Mapping[str, Array]) -> Weights:
        """Copy named arrays into flat vectors; names outside the vectors are ignored.

        Raises:
            PlanError: a tensor is missing or has another shape.
        """
        floats = np.empty(self.float_count, np.float32)
        integers = np.empty(self.integer_count, np.int64)
        for spec, place in self.float_slices():
            floats[place] = _matching(arrays, spec).reshape(-1)
        for spec, place in self.integer_slices():
            integers[place] = _matching(arrays, spec).reshape(-1)
        return Weights(floats, integers)

    def unflatten(self, weights: Weights) -> dict[str, Array]:
        """Named views of the flat vectors (no copies).

        Raises:
            PlanError: a vector has another length than this layout.
        """
        found = (weights.floats.size, weights.integers.size)
        if found != (self.float_count, self.integer_count):
            raise PlanError(
                f"weights of {found[0]} floats and {found[1]} integers do not fit this layout of "
                f"{self.float_count} and {self.integer_count}: they belong to another plan"
            )
        named: dict[str, Array] = {}
        for spec, place in self.float_slices():
            named[spec.name] = weights.floats[place].reshape(spec.shape)
        for spec, place in self.integer_slices():
            named[spec.name] = weights.integers[place].reshape(spec.shape)
        return named

    def _sorted(self, role: Role, dtype: str) -> tuple[TensorSpec, ...]:
        chosen = (spec for spec in self.tensors if spec.role is role and spec.dtype == dtype)
        return tuple(sorted(chosen, key=lambda spec: spec.name))


def _slices(tensors: tuple[TensorSpec, ...]) -> Iterator[tuple[TensorSpec, slice]]:
    start = 0
    for spec in tensors:
        yield spec, slice(start, start + spec.count)
        start += spec.count


def _matching(arrays: Mapping[str, Array], spec: TensorSpec) -> Array:
    array = arrays.get(spec.name)
    if array is None:
        raise PlanError(f"the weights lack the tensor {spec.name!r}")
    if tuple(array.shape) != spec.shape:
        raise PlanError(
            f"tensor {spec.name!r} has shape {tuple(array.shape)}; the plan says {spec.shape}"
        )
    return array


def _check_dtype(spec: TensorSpec) -> None:
    allowed = {
        Role.TRAINABLE: ("float32",),
        Role.AVERAGED_BUFFER: ("float32", "int64"),
    }.get(spec.role)
    if allowed is not None and spec.dtype not in allowed:
        raise PlanError(
            f"tensor {spec.name!r} is {spec.role} with dtype {spec.dtype}; supported: "
            + ", ".join(allowed)
        )
