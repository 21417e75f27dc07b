"""Splitting Parquet files without holding them in memory."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError, require
from headwater.partitioning.decisions import Rows
from headwater.partitioning.tables import (
    complete_files,
    part_numbers,
    passes,
    refuse_missing_column,
)
from headwater.sources.fields import Origin, refuse_empty
from headwater.sources.parquet_reader import open_parquet, parquet_files, readable

SLICE_ROWS = 1024
GROUP_ROWS = 5000
"""Rows of a written row group, unless memory runs short before."""

HELD_BYTES = 128 * 2**20
"""Rows that wait to be written take at most this much and one slice."""


class ParquetTable:
    """One Parquet file, or a folder of files with one schema as Spark writes it."""

    ending = ".parquet"

    def __init__(self, path: str) -> None:
        self._path = path
        self._files = parquet_files(path)
        count = 0
        self._schema: Any = None
        for name in self._files:
            with contextlib.closing(open_parquet(name)) as file:
                self._schema = self._schema or file.schema_arrow
                if not file.schema_arrow.equals(self._schema):
                    raise DataError(f"{name}: the columns differ from those of {self._files[0]}")
                count += file.metadata.num_rows
        self.names = tuple(self._schema.names)
        self._count = refuse_empty(path, count)

    def count(self) -> int:
        """The number of rows of all files."""
        return self._count

    def values(self, column: str) -> NDArray[Any]:
        """A column of numbers, booleans or text; lists and missing values are refused."""
        refuse_missing_column(self._path, self.names, column)
        types = require("pyarrow.types", extra="parquet", purpose="read Parquet files")
        kind = self._schema.field(column).type
        if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
            raise DataError(f"{self._path}: column {column!r} holds {kind}, not one label a row")
        parts = [self._file_values(name, column) for name in self._files]
        return np.concatenate(parts)

    def _file_values(self, name: str, column: str) -> NDArray[Any]:
        with contextlib.closing(open_parquet(name)) as file, readable(name):
            array = file.read([column], use_threads=False).column(column)
        if array.null_count:
            position = int(np.argmax(array.is_null().to_numpy()))
            raise Origin(name).error(column, position, "there is no value (null)")
        values = np.asarray(array.to_numpy())
        return values.astype(np.str_) if values.dtype == np.object_ else values

    def write(self, parts: Mapping[Path, Rows]) -> None:
        """Write rows to Parquet files; see `Table`."""
        for group in passes(parts):
            numbers = part_numbers(self._count, [rows for _, rows in group])
            paths = [path for path, _ in group]
            with complete_files(paths) as temporary, contextlib.ExitStack() as files:
                writers = [
                    files.enter_context(PartWriter(path, self._schema)) for path in temporary
                ]
                self._write_pass(writers, numbers)

    def _write_pass(self, writers: Sequence["PartWriter"], numbers: NDArray[np.int32]) -> None:
        held_bytes = position = 0
        for piece in self._slices():
            here = numbers[position : position + len(piece)]
            position += len(piece)
            for number in np.unique(here[here >= 0]):
                rows = piece.take(np.flatnonzero(here == number))
                held_bytes += rows.nbytes
                held_bytes -= writers[number].add(rows)
            if held_bytes > HELD_BYTES:
                for writer in writers:
                    writer.flush()
                held_bytes = 0

    def _slices(self) -> Iterator[Any]:
        for name in self._files:
            with contextlib.closing(open_parquet(name)) as file:
                slices = file.iter_batches(SLICE_ROWS, use_threads=False)
                while True:
                    with readable(name):
                        piece = next(slices, None)
                    if piece is None:
                        break
                    yield piece


class PartWriter:
    """Writes one part, gathering rows so that its row groups are not tiny."""

    def __init__(self, path: Path, schema: Any) -> None:
        parquet = require("pyarrow.parquet", extra="parquet", purpose="write Parquet files")
        self._arrow = require("pyarrow", extra="parquet", purpose="write Parquet files")
        self._writer = parquet.ParquetWriter(path, schema, write_page_checksum=True)
        self._schema = schema
        self._held: list[Any] = []
        self._rows = 0

    def add(self, rows: Any) -> int:
        """Take rows; returns how many bytes of those held so far were written."""
        self._held.append(rows)
        self._rows += len(rows)
        return self.flush() if self._rows >= GROUP_ROWS else 0

    def flush(self) -> int:
        """Write what is held as one row group; returns its bytes."""
        if not self._held:
            return 0
        written = sum(int(rows.nbytes) for rows in self._held)
        table = self._arrow.Table.from_batches(self._held, self._schema).combine_chunks()
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._held, self._rows = [], 0
        return written

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self.flush()
        self._writer.close()
