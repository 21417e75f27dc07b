"""CSV with a header line: numbers, and texts where the plan takes them, read into memory.

The target is a column by name; every other column is a feature, in the file's order. Row 0 is the
first line after the header.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.batch import TensorSignature
from headwater.errors import DataError
from headwater.sources.binding import Binding, check_options
from headwater.sources.columns import COLUMN_OPTIONS, choose_fields
from headwater.sources.fields import Origin
from headwater.sources.npz import array_source
from headwater.sources.order import ArraySource

OPTIONS = COLUMN_OPTIONS
_BLOCK_ROWS = 4096


@contextmanager
def csv_rows(path: str) -> Iterator[tuple[tuple[str, ...], Iterator[list[str]]]]:
    """Open a CSV file: its column names, and its rows, each checked for the number of cells.

    Raises:
        DataError: the file is missing or no UTF-8 text, has no header, or a row is ragged.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
            reader = csv.reader(file, strict=True)
            header = _header(path, next(reader, []))
            yield header, _checked(path, reader, len(header))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error


def _header(path: str, cells: Sequence[str]) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in cells)
    if not names:
        raise DataError(f"{path}: empty shard: the file has no header and no rows")
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path}: the first line holds only numbers; it must name the columns, for example "
            f"{','.join(f'f{i}' for i in range(min(3, len(names))))},…,label"
        )
    for name in names:
        if not name or names.count(name) > 1:
            raise DataError(f"{path}: the header names column {name!r} twice or not at all")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked(path: str, reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    row = 0
    for cells in reader:
        if not cells:
            continue
        if len(cells) != width:
            raise DataError(
                f"{path}: row {row} has {len(cells)} cells, the header names {width} columns"
            )
        yield cells
        row += 1


def read_columns(
    path: str, numbers: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Some columns as float64 arrays and some as they stand.

    Raises:
        DataError: a cell is no number; names column and row.
    """
    with csv_rows(path) as (header, rows):
        places = [header.index(name) for name in numbers]
        text_places = [header.index(name) for name in texts]
        blocks = []
        columns: list[list[str]] = [[] for _ in texts]
        first_row = 0
        while block := list(islice(rows, _BLOCK_ROWS)):
            cells = [[row[place] for place in places] for row in block]
            blocks.append(_numbers(path, numbers, cells, first_row))
            for column, place in zip(columns, text_places, strict=True):
                column.extend(row[place] for row in block)
            first_row += len(block)
    table = np.concatenate(blocks) if blocks else np.empty((0, len(numbers)))
    found: dict[str, NDArray[Any]] = {name: table[:, at] for at, name in enumerate(numbers)}
    return found | {n: np.array(c, np.object_) for n, c in zip(texts, columns, strict=True)}


def _numbers(
    path: str, columns: Sequence[str], cells: Sequence[Sequence[str]], first_row: int
) -> NDArray[np.float64]:
    try:
        return np.array(cells, np.float64)
    except ValueError:
        origin = Origin(path, np.arange(first_row, first_row + len(cells)))
        for position, row in enumerate(cells):
            for name, cell in zip(columns, row, strict=True):
                if not _is_number(cell):
                    raise origin.error(name, position, f"{cell!r} is not a number") from None
        raise


def open_csv_source(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> ArraySource:
    """Read a CSV file's columns into memory and check every value."""
    check_options(binding, OPTIONS)
    with csv_rows(binding.path) as (header, _):
        fields = choose_fields(binding, header, inputs, targets, rest_are_features=True)
    texts = {name for field in fields.every if field.takes_text for name in field.columns}
    numbers = [name for name in fields.columns if name not in texts]
    return array_source(binding.path, fields, read_columns(binding.path, numbers, sorted(texts)))
