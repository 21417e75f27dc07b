"""Texts as numbers: characters by a table, and names of classes."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError
from headwater.preparation import Text

Fail = Callable[[int, str], DataError]
"""Makes an error about the value at a position, from what is wrong with it."""


def is_text(values: NDArray[np.generic]) -> bool:
    """Whether an array holds texts: NumPy's own type, or the objects that Parquet columns give."""
    return values.dtype.kind in "UO"


def character_numbers(
    text: Text, length: int, values: NDArray[np.generic], fail: Fail
) -> NDArray[np.generic]:
    """Numbers [examples, length] in the smallest type that holds the table.

    Raises:
        DataError: a text is too short, or has a character that is not in the table.
    """
    table = _codes(text.characters)
    order = np.argsort(table)
    numbers = np.empty((len(values), length), np.min_scalar_type(len(table) - 1))
    if text.padding is not None:
        numbers[:] = text.characters.index(text.padding)
    for row, value in enumerate(values.tolist()):
        shown = value[text.skip : text.skip + length]
        if len(shown) < length and text.padding is None:
            skipped = f" after the {text.skip} that are skipped" if text.skip else ""
            raise fail(
                row,
                f"the text has {len(shown)} of {length} characters{skipped}; longer texts are cut "
                "off, and padding in the job file would fill shorter ones",
            )
        places = order[np.searchsorted(table, _codes(shown), sorter=order).clip(max=len(table) - 1)]
        strange = table[places] != _codes(shown)
        if strange.any():
            if text.unknown is None:
                raise fail(
                    row,
                    f"the character {shown[int(strange.argmax())]!r} is not in the plan's table; "
                    "unknown in the job file would stand for it",
                )
            places[strange] = text.characters.index(text.unknown)
        numbers[row, : len(shown)] = places
    return numbers


def class_numbers(
    labels: Mapping[str, int], values: NDArray[np.generic], fail: Fail
) -> NDArray[np.int64]:
    """The numbers of names, in the values' shape; digits that are no name stand for themselves.

    Raises:
        DataError: a name is not among the labels.
    """
    numbers = np.empty(values.size, np.int64)
    for place, value in enumerate(values.reshape(-1).tolist()):
        number = label_number(labels, value)
        if number is None:
            known = ", ".join(list(labels)[:10]) + (", …" if len(labels) > 10 else "")
            row = place * len(values) // values.size
            raise fail(row, f"{value!r} is not one of the plan's labels ({known})")
        numbers[place] = number
    return numbers.reshape(values.shape)


def label_number(labels: Mapping[str, int], name: str) -> int | None:
    """The number of a name, or of digits; None for anything else."""
    if name in labels:
        return labels[name]
    is_number = name.isascii() and name.isdigit() and len(name) < 19
    return int(name) if is_number else None


def _codes(text: str) -> NDArray[np.uint32]:
    # Half a pair, which a damaged file may hold, is a character like any other.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
