"""Parquet files as compact chunks: row group by row group, in slices, filtered."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError, require
from headwater.sources.arrow import column_values
from headwater.sources.columns import listed
from headwater.sources.fields import Chunk, Field, Fields, Origin
from headwater.sources.filters import Condition
from headwater.sources.images import ImageDecoder

_ROW = "headwater.row"
PAGE_BUFFER_BYTES = 1 << 20
COUNT_SLICE_ROWS = 8192
FIRST_SLICE_ROWS = 64


@dataclass(frozen=True)
class RowGroup:
    """One row group: its file, its place there, the row that it starts at, the rows taken of it."""

    path: str
    index: int
    first_row: int
    taken: int


def parquet_files(path: str) -> tuple[str, ...]:
    """The file itself, or the `.parquet` files of a folder by name.

    Names that start with `_` or `.` (`_SUCCESS`, checksums) are no data, as for Spark.

    Raises:
        DataError: there is no such file or folder, or no Parquet file in it.
    """
    location = Path(path)
    if location.is_file():
        return (path,)
    if not location.is_dir():
        raise DataError(f"{path}: there is no such file or folder")
    files = sorted(file for file in location.glob("*.parquet") if file.name[0] not in "._")
    if not files:
        raise DataError(f"{path}: there is no .parquet file in this folder")
    return tuple(str(file) for file in files)


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn what pyarrow and the system raise about a file into a DataError that names it."""
    arrow = require("pyarrow", extra="parquet", purpose="read Parquet files")
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: cannot be read as Parquet: {detail[0]}") from error


def open_parquet(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` that reads pages as it goes, not whole column chunks."""
    parquet = require("pyarrow.parquet", extra="parquet", purpose="read Parquet files")
    with readable(path):
        return parquet.ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=PAGE_BUFFER_BYTES,
            page_checksum_verification=True,
        )


class ParquetReader:
    """Reads the rows of some Parquet files, in slices, as compact chunks."""

    def __init__(
        self,
        files: Sequence[str],
        fields: Fields,
        decoders: Mapping[Field, ImageDecoder],
        condition: Condition | None,
    ) -> None:
        self._fields = fields
        self._decoders = decoders
        self._condition = condition
        self._columns = list(
            dict.fromkeys((*fields.columns, *(condition.columns if condition else ())))
        )
        self.groups = tuple(group for path in files for group in self._groups(path))

    def count(self) -> int:
        """The number of rows that the condition takes, exactly."""
        return sum(group.taken for group in self.groups)

    def first(self) -> Chunk:
        """The first row alone; there must be one."""
        group = self.groups[0]
        with contextlib.closing(open_parquet(group.path)) as file:
            slices = self._slices(file, group, self._columns, FIRST_SLICE_ROWS)
            piece, rows = next(found for found in slices if len(found[1]))
            return self._chunk(piece.slice(0, 1), Origin(group.path, rows[:1]))

    def chunks(self, groups: Sequence[RowGroup], slice_rows: int) -> Iterator[Chunk]:
        """The rows of these groups in order, at most `slice_rows` in a chunk; none is empty."""
        for group in groups:
            with contextlib.closing(open_parquet(group.path)) as file:
                for piece, rows in self._slices(file, group, self._columns, slice_rows):
                    if len(rows):
                        yield self._chunk(piece, Origin(group.path, rows))

    def _slices(
        self, file: Any, group: RowGroup, columns: Sequence[str], slice_rows: int
    ) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Slices of a row group after the condition, with the rows' numbers in the file."""
        arrow = require("pyarrow", extra="parquet", purpose="read Parquet files")
        slices = file.iter_batches(slice_rows, [group.index], list(columns), use_threads=False)
        first_row = group.first_row
        while True:
            with readable(group.path):
                piece = next(slices, None)
                if piece is None:
                    return
                rows = np.arange(first_row, first_row + len(piece), dtype=np.int64)
                first_row += len(piece)
                if self._condition is not None:
                    numbered = piece.append_column(_ROW, arrow.array(rows))
                    piece = numbered.filter(self._condition.expression)
                    rows = piece.column(_ROW).to_numpy()
            yield piece, rows

    def _chunk(self, piece: Any, origin: Origin) -> Chunk:
        return tuple(self._compact(field, piece, origin) for field in self._fields.every)

    def _compact(self, field: Field, piece: Any, origin: Origin) -> NDArray[Any]:
        name = field.columns[0]
        if field in self._decoders:
            return decoded(piece.column(name), name, self._decoders[field], origin)
        parts = [
            column_values(piece.column(column), column, origin, texts=field.takes_text)
            for column in field.columns
        ]
        if len(parts) == 1:
            return field.compact(parts[0], origin)
        for column, part in zip(field.columns, parts, strict=True):
            if part.ndim != 1:
                raise DataError(
                    f"{origin.path}: column {column!r} holds lists; several columns fill one "
                    "tensor only with one number each"
                )
        return field.compact(np.stack(parts, axis=1), origin)

    def _groups(self, path: str) -> Iterator[RowGroup]:
        """The row groups of a file with rows that the condition takes."""
        with contextlib.closing(open_parquet(path)) as file:
            self._check_columns(path, file.schema_arrow.names)
            kept = None if self._condition is None else _not_excluded(path, self._condition)
            first_row = 0
            for index in range(file.num_row_groups):
                size = file.metadata.row_group(index).num_rows
                group = RowGroup(path, index, first_row, size)
                first_row += size
                if kept is not None:
                    taken = self._count_taken(file, group) if index in kept else 0
                    group = replace(group, taken=taken)
                if group.taken:
                    yield group

    def _count_taken(self, file: Any, group: RowGroup) -> int:
        columns = self._condition.columns if self._condition else ()
        return sum(len(rows) for _, rows in self._slices(file, group, columns, COUNT_SLICE_ROWS))

    def _check_columns(self, path: str, names: Sequence[str]) -> None:
        for column in self._columns:
            if names.count(column) != 1:
                problem = "are two columns" if column in names else "is no column"
                raise DataError(f"{path}: there {problem} {column!r} ({listed(names)})")


def _not_excluded(path: str, condition: Condition) -> set[int]:
    """The row groups of a file that its statistics don't exclude."""
    arrow = require("pyarrow", extra="parquet", purpose="read Parquet files")
    dataset = require("pyarrow.dataset", extra="parquet", purpose="read Parquet files")
    files = require("pyarrow.fs", extra="parquet", purpose="read Parquet files")
    absolute = str(Path(path).absolute())
    fragment = dataset.ParquetFileFormat().make_fragment(absolute, files.LocalFileSystem())
    try:
        return {group.id for group in fragment.subset(condition.expression).row_groups}
    except arrow.ArrowException as error:
        raise DataError(
            f"{path}: where={condition.text} cannot be applied to the columns: {error}"
        ) from error


def decoded(array: Any, column: str, decoder: ImageDecoder, origin: Origin) -> NDArray[np.uint8]:
    """Decode a column of encoded images: [rows, *shape], uint8."""
    encoded = array.field("bytes") if array.type.num_fields else array
    pixels = np.empty((len(array), *decoder.shape), np.uint8)
    for position, value in enumerate(encoded):
        data = value.as_py()
        if data is None or not array[position].is_valid:
            raise origin.error(column, position, "there are no image bytes (null)")
        fail = _failure(origin, column, position)
        pixels[position] = decoder.decode(data, fail)
    return pixels


def _failure(origin: Origin, column: str, position: int) -> Callable[[str], DataError]:
    return lambda problem: origin.error(column, position, problem)
