"""One tensor of a batch: how stored values become what the model's signature asks for.

Values have two forms. *Compact* is what is held in memory: checked, in the signature's shape, and
still uint8 where pixels were stored. *Finished* is what a batch carries: the signature's dtype,
scaled. The rules:

- Shape: values that differ only in dimensions of size 1, or of which one side is flat, are reshaped
  in row-major order. Images stored as height, width, channels (1, 3 or 4) are transposed where the
  signature is channels, height, width. Nothing else is rearranged.
- Type: float to float and integer to float convert (a value too large is refused); float to integer
  only where every value is integral; NaN and infinite values are refused.
- Scale: uint8 values for a float input of two or more dimensions are pixels, divided by 255. The
  option `scale=` replaces this and multiplies any float input.
- Integers lie in `0 <= value < maximum` where the signature has a maximum.
- Texts become numbers where the signature has a table of characters or names of classes
  (`headwater.sources.text`). Images of which the plan says how they become numbers stay bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwater.batch import Array, Batch, TensorSignature, batch_of
from headwater.errors import DataError
from headwater.preparation import CHANNELS
from headwater.sources.text import character_numbers, class_numbers, is_text

PIXEL_SCALE = Fraction(1, 255)

Chunk = tuple[Array, ...]


@dataclass(frozen=True)
class Origin:
    """Where values came from: a file and the 0-based row, as stored there, of each of them.

    `rows` is None where the values are the file's rows from the first on.
    """

    path: str
    rows: NDArray[np.int64] | None = None

    def error(self, column: str, position: int, problem: str) -> DataError:
        """An error about the value at a position, named by file, column and row."""
        row = position if self.rows is None else int(self.rows[position])
        return DataError(f"{self.path}: column {column!r}, row {row}: {problem}")


def shape_rule(
    stored: tuple[int, ...], wanted: tuple[int, ...]
) -> Literal["keep", "reshape", "transpose", "refuse"]:
    """How an example of one shape fills a tensor of another (without batch dimension)."""
    if stored == wanted:
        return "keep"
    if math.prod(stored) != math.prod(wanted):
        return "refuse"
    without_ones = [n for n in stored if n != 1], [n for n in wanted if n != 1]
    if without_ones[0] == without_ones[1] or len(stored) <= 1 or len(wanted) <= 1:
        return "reshape"
    if len(stored) == 3 and stored[2] in CHANNELS and wanted == (stored[2], *stored[:2]):
        return "transpose"
    return "refuse"


@dataclass(frozen=True)
class Field:
    """One input or target and the column, or the columns of single numbers, that fill it.

    `scale` multiplies the finished values; None means the rule above.
    """

    signature: TensorSignature
    columns: tuple[str, ...]
    scale: Fraction | None = None

    @property
    def label(self) -> str:
        """The columns as messages name them."""
        shown = self.columns if len(self.columns) <= 4 else (*self.columns[:3], "…")
        return ", ".join(shown)

    @property
    def is_float(self) -> bool:
        """Whether the model takes floating numbers here."""
        return np.dtype(self.signature.dtype).kind == "f"

    @property
    def takes_text(self) -> bool:
        """Whether stored texts become numbers here."""
        return self.signature.text is not None or bool(self.signature.labels)

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.signature.labels)}

    def compact(self, values: NDArray[Any], origin: Origin) -> Array:
        """Check values of shape [examples, …] and bring them to [examples, *signature.shape].

        Raises:
            DataError: the shape, type or a value does not fit; names file, column and row.
        """
        wanted = self.signature.shape
        if self.takes_text and is_text(values):
            values = self._numbers(values, origin)
        rule = shape_rule(values.shape[1:], wanted)
        if rule == "refuse":
            raise DataError(
                f"{origin.path}: column {self.label!r} holds values of shape "
                f"{list(values.shape[1:])} for each example, {self.signature.name!r} of the model "
                f"wants {list(wanted)}"
            )
        converted = self._converted(values, origin)
        if rule == "transpose":
            return np.ascontiguousarray(converted.transpose(0, 3, 1, 2))
        return np.ascontiguousarray(converted.reshape(len(converted), *wanted))

    def finish(self, compact: Array) -> Array:
        """Compact values as the model takes them: the signature's dtype, scaled."""
        scale = self.scale
        if scale is None and compact.dtype == np.uint8 and len(self.signature.shape) >= 2:
            scale = PIXEL_SCALE
        if scale is None or not self.is_float:
            return compact.astype(self.signature.dtype, copy=False)
        finished: NDArray[Any] = compact.astype(self.signature.dtype)
        if scale.numerator != 1:
            finished *= finished.dtype.type(scale.numerator)
        if scale.denominator != 1:
            finished /= finished.dtype.type(scale.denominator)
        return finished

    def _numbers(self, texts: NDArray[Any], origin: Origin) -> Array:
        def fail(position: int, problem: str) -> DataError:
            return origin.error(self.label, position, problem)

        if self.signature.text is None:
            return class_numbers(self._labels, texts, fail)
        if texts.ndim != 1:
            raise DataError(
                f"{origin.path}: column {self.label!r} holds {list(texts.shape[1:])} texts for "
                "each example; one is wanted"
            )
        return character_numbers(self.signature.text, self.signature.shape[0], texts, fail)

    def _converted(self, values: NDArray[Any], origin: Origin) -> Array:
        kind = values.dtype.kind
        if self.signature.image is not None and kind not in "iu":
            raise DataError(
                f"{origin.path}: column {self.label!r} holds {values.dtype} values, "
                f"{self.signature.name!r} of the model takes images of bytes from 0 to 255, which "
                "the plan scales itself: store uint8"
            )
        if kind not in "biuf":
            raise DataError(
                f"{origin.path}: column {self.label!r} holds {values.dtype} values, "
                f"{self.signature.name!r} of the model wants {self.signature.dtype}"
            )
        if kind == "f":
            self._refuse(~np.isfinite(values), values, origin, "is not a finite number")
        if self.is_float:
            return self._as_float(values, origin)
        return self._as_integer(values, origin)

    def _as_float(self, values: NDArray[Any], origin: Origin) -> Array:
        if values.dtype == np.uint8:
            return values
        with np.errstate(over="ignore"):
            converted = values.astype(self.signature.dtype)
        if values.dtype.itemsize > converted.dtype.itemsize:
            problem = f"does not fit {self.signature.dtype}"
            self._refuse(~np.isfinite(converted), values, origin, problem)
        return converted

    def _as_integer(self, values: NDArray[Any], origin: Origin) -> Array:
        dtype = np.dtype(self.signature.dtype)
        if values.dtype.kind == "f":
            problem = f"is not an integer, as {self.signature.name!r} of the model wants"
            self._refuse(values != np.floor(values), values, origin, problem)
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if self.signature.maximum is not None:
            low, high = 0, self.signature.maximum - 1
        problem = f"is out of range: {self.signature.name!r} of the model takes {low} to {high}"
        self._refuse(_outside(values, int(low), int(high)), values, origin, problem)
        return values.astype(dtype)

    def _refuse(
        self, bad: NDArray[np.bool_], values: NDArray[Any], origin: Origin, problem: str
    ) -> None:
        if not bad.any():
            return
        index = np.unravel_index(int(bad.argmax()), bad.shape)
        stacked = len(self.columns) > 1 and len(index) == 2
        column = self.columns[index[1]] if stacked else self.label
        raise origin.error(column, int(index[0]), f"{values[index]} {problem}")


def _outside(values: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    """Which values are below `low` or above `high`, exactly, for integers of any width."""
    if values.dtype.kind == "f":
        # high + 1 is a power of two or small: exact as a float64, where 2**63 - 1 itself is not.
        wide = values.astype(np.float64, copy=False)
        return np.asarray((wide < low) | (wide >= float(high + 1)))
    bounds = (0, 1) if values.dtype.kind == "b" else _integer_bounds(values.dtype)
    bad = np.zeros(values.shape, np.bool_)
    if low > bounds[0]:
        bad |= values < low
    if high < bounds[1]:
        bad |= values > high
    return bad


def _integer_bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    information = np.iinfo(dtype)
    return int(information.min), int(information.max)


@dataclass(frozen=True)
class Fields:
    """The fields of a batch: inputs, then targets, in the order of the plan."""

    inputs: tuple[Field, ...]
    targets: tuple[Field, ...]

    @property
    def every(self) -> tuple[Field, ...]:
        """Inputs, then targets: the order of a chunk's arrays."""
        return self.inputs + self.targets

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, once, in order."""
        return tuple(dict.fromkeys(name for field in self.every for name in field.columns))

    def batch(self, chunk: Chunk) -> Batch:
        """Finish a chunk of compact arrays."""
        finished = [field.finish(part) for field, part in zip(self.every, chunk, strict=True)]
        count = len(self.inputs)
        signatures = [field.signature for field in self.targets]
        return batch_of(finished[:count], finished[count:], signatures)


def example_bytes(chunk: Chunk) -> int:
    """How many bytes one example takes in compact form."""
    return sum(part.itemsize * math.prod(part.shape[1:]) for part in chunk)


def same_length(path: str, columns: Sequence[str], arrays: Sequence[Array]) -> int:
    """The number of examples.

    Raises:
        DataError: the columns differ in length, or there is no example.
    """
    counts = {name: len(array) for name, array in zip(columns, arrays, strict=True)}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise DataError(f"{path}: the columns differ in length: {shown}")
    return refuse_empty(path, next(iter(counts.values()), 0))


def refuse_empty(path: str, count: int) -> int:
    """The count itself.

    Raises:
        DataError: it is zero.
    """
    if count == 0:
        raise DataError(f"{path}: empty shard: there are no examples to train on")
    return count
