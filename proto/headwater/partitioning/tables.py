"""Data sets as they lie in files, and writing rows of them to files of the same kind."""

import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError, UsageError
from headwater.partitioning.decisions import Rows
from headwater.sources import source_kind
from headwater.sources.binding import check_options, split_binding
from headwater.sources.columns import listed
from headwater.sources.csv_table import csv_rows
from headwater.sources.digits import read_digits
from headwater.sources.fields import refuse_empty, same_length
from headwater.sources.npz import read_arrays

OPEN_FILES = 64
"""Files that are written in one pass over the source; more parts take more passes."""

_SLICE_ROWS = 8192


class Table(Protocol):
    """A data set whose rows can be written to files of the same kind."""

    ending: str
    """Of the files that `write` makes, such as `.parquet`."""

    names: tuple[str, ...]
    """The columns."""

    def count(self) -> int:
        """The number of rows, at least 1."""
        ...

    def values(self, column: str) -> NDArray[Any]:
        """One value a row: numbers or text.

        Raises:
            DataError: there is no such column, or it does not hold one value a row.
        """
        ...

    def write(self, parts: Mapping[Path, Rows]) -> None:
        """Write rows to files, in stored order; the sets of rows don't overlap.

        A file appears under its name only when it is complete.
        """
        ...


def open_table(binding: str) -> Table:
    """Open `PATH.parquet` (or a folder of such), `.npz`, `.csv` or `digits:[?split=train|test]`.

    Raises:
        DataError: the data is missing, unreadable or empty.
        UsageError: it is of a kind that cannot be split.
    """
    parts = split_binding(binding)
    if parts.scheme == "digits":
        check_options(parts, ("split",))
        return ArrayTable("digits:", read_digits(parts.options.get("split", "all")))
    kind = None if parts.scheme else source_kind(parts.path)
    check_options(parts, ())
    if kind == ".npz":
        return ArrayTable(parts.path, read_arrays(parts.path))
    if kind == ".csv":
        return CsvTable(parts.path)
    if kind == ".parquet":
        # Only this kind needs pyarrow.
        from headwater.partitioning.parquet_table import ParquetTable

        return ParquetTable(parts.path)
    raise UsageError(f"{binding}: only .parquet, .npz, .csv and digits: can be split")


@contextlib.contextmanager
def complete_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names beside the paths: renamed when the block succeeds, removed when it fails."""
    temporary = [path.with_name(f".{path.name}.tmp") for path in paths]
    try:
        yield temporary
        for source, path in zip(temporary, paths, strict=True):
            source.replace(path)
    except BaseException:
        for source in temporary:
            source.unlink(missing_ok=True)
        raise


def passes(parts: Mapping[Path, Rows]) -> Iterator[tuple[tuple[Path, Rows], ...]]:
    """The parts in groups of at most `OPEN_FILES`."""
    remaining = iter(parts.items())
    while group := tuple(islice(remaining, OPEN_FILES)):
        yield group


def part_numbers(count: int, parts: Sequence[Rows]) -> NDArray[np.int32]:
    """For each of `count` rows the index of its part, or -1 where it is in none."""
    numbers = np.full(count, -1, np.int32)
    for index, rows in enumerate(parts):
        numbers[rows] = index
    return numbers


def refuse_missing_column(path: str, names: Sequence[str], column: str) -> None:
    """Raise a DataError that lists the columns where this one is not among them."""
    if column not in names:
        raise DataError(f"{path}: there is no column {column!r} ({listed(names)})")


class ArrayTable:
    """Arrays in memory, from an `.npz` file or the digits; parts are compressed `.npz` files."""

    ending = ".npz"

    def __init__(self, path: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._path = path
        self._arrays = arrays
        self.names = tuple(arrays)
        for name, array in arrays.items():
            if array.ndim == 0:
                raise DataError(f"{path}: column {name!r} is a single value, not one an example")
        self._count = same_length(path, self.names, list(arrays.values()))

    def count(self) -> int:
        """The number of examples."""
        return self._count

    def values(self, column: str) -> NDArray[Any]:
        """An array of one number or text an example."""
        refuse_missing_column(self._path, self.names, column)
        array = self._arrays[column]
        if array.size != self._count:
            shape = list(array.shape[1:])
            raise DataError(
                f"{self._path}: column {column!r} holds values of shape {shape}, not one an example"
            )
        return array.reshape(-1)

    def write(self, parts: Mapping[Path, Rows]) -> None:
        """Write rows to `.npz` files; see `Table`."""
        for path, rows in parts.items():
            with complete_files([path]) as (temporary,), temporary.open("wb") as file:
                part = {name: array[rows] for name, array in self._arrays.items()}
                np.savez_compressed(file, allow_pickle=False, **part)


class CsvTable:
    """A CSV file with a header; parts have the same header."""

    ending = ".csv"

    def __init__(self, path: str) -> None:
        self._path = path
        with csv_rows(path) as (header, rows):
            self.names = header
            self._count = refuse_empty(path, sum(1 for _ in rows))

    def count(self) -> int:
        """The number of rows below the header."""
        return self._count

    def values(self, column: str) -> NDArray[Any]:
        """A column's cells: integers where all are, otherwise text."""
        refuse_missing_column(self._path, self.names, column)
        with csv_rows(self._path) as (header, rows):
            place = header.index(column)
            cells = np.array([row[place].strip() for row in rows])
        try:
            return cells.astype(np.int64)
        except (ValueError, OverflowError):
            return cells

    def write(self, parts: Mapping[Path, Rows]) -> None:
        """Write rows to CSV files; see `Table`."""
        for group in passes(parts):
            paths = [path for path, _ in group]
            numbers = part_numbers(self._count, [rows for _, rows in group])
            with complete_files(paths) as temporary:
                self._write_pass(temporary, numbers)

    def _write_pass(self, paths: Sequence[Path], numbers: NDArray[np.int32]) -> None:
        with contextlib.ExitStack() as files, csv_rows(self._path) as (header, rows):
            writers = [
                csv.writer(
                    files.enter_context(path.open("w", encoding="utf-8", newline="")),
                    lineterminator="\n",
                )
                for path in paths
            ]
            for writer in writers:
                writer.writerow(header)
            position = 0
            while block := list(islice(rows, _SLICE_ROWS)):
                for row, number in zip(block, numbers[position:], strict=False):
                    if number >= 0:
                        writers[number].writerow(row)
                position += len(block)
