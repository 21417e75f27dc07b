"""Parquet files as compact chunks: row group by row group, in slices, filtered."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RowGroup:
    """One row group: its file, its place there, the row that it starts at and its rows."""

    path: str
    index: int
    first_row: int
    row_count: int


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
        if self._condition is None:
            return sum(group.row_count for group in self.groups)
        total = 0
        for path in dict.fromkeys(group.path for group in self.groups):
            with readable(path):
                total += self._fragment(path).count_rows(filter=self._expression)
        return total

    def chunks(self, groups: Sequence[RowGroup], slice_rows: int) -> Iterator[Chunk]:
        """The rows of these groups in order, at most `slice_rows` in a chunk; none is empty."""
        for group in groups:
            with contextlib.closing(open_parquet(group.path)) as file:
                yield from self._group_chunks(file, group, slice_rows)

    def _group_chunks(self, file: Any, group: RowGroup, slice_rows: int) -> Iterator[Chunk]:
        arrow = require("pyarrow", extra="parquet", purpose="read Parquet files")
        slices = file.iter_batches(slice_rows, [group.index], self._columns, use_threads=False)
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
                    piece = numbered.filter(self._expression)
                    rows = piece.column(_ROW).to_numpy()
            if len(piece):
                yield self._chunk(piece, Origin(group.path, rows))

    def _chunk(self, piece: Any, origin: Origin) -> Chunk:
        return tuple(self._compact(field, piece, origin) for field in self._fields.every)

    def _compact(self, field: Field, piece: Any, origin: Origin) -> NDArray[Any]:
        name = field.columns[0]
        if field in self._decoders:
            return decoded(piece.column(name), name, self._decoders[field], origin)
        parts = [column_values(piece.column(column), column, origin) for column in field.columns]
        if len(parts) == 1:
            return field.compact(parts[0], origin)
        for column, part in zip(field.columns, parts, strict=True):
            if part.ndim != 1:
                raise DataError(
                    f"{origin.path}: column {column!r} holds lists; several columns fill one "
                    "tensor only with one number each"
                )
        return field.compact(np.stack(parts, axis=1), origin)

    @property
    def _expression(self) -> Any:
        return None if self._condition is None else self._condition.expression

    def _fragment(self, path: str) -> Any:
        dataset = require("pyarrow.dataset", extra="parquet", purpose="read Parquet files")
        files = require("pyarrow.fs", extra="parquet", purpose="read Parquet files")
        absolute = str(Path(path).absolute())
        return dataset.ParquetFileFormat().make_fragment(absolute, files.LocalFileSystem())

    def _groups(self, path: str) -> Iterator[RowGroup]:
        """The row groups of a file that its statistics don't exclude."""
        with contextlib.closing(open_parquet(path)) as file:
            names = file.schema_arrow.names
            for column in self._columns:
                if names.count(column) != 1:
                    problem = "are two columns" if column in names else "is no column"
                    raise DataError(f"{path}: there {problem} {column!r} ({listed(names)})")
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        kept = set(range(len(sizes)))
        if self._condition is not None:
            kept = self._kept_groups(path, self._condition)
        first_row = 0
        for index, size in enumerate(sizes):
            if index in kept:
                yield RowGroup(path, index, first_row, size)
            first_row += size

    def _kept_groups(self, path: str, condition: Condition) -> set[int]:
        arrow = require("pyarrow", extra="parquet", purpose="read Parquet files")
        try:
            fragment = self._fragment(path).subset(condition.expression)
        except arrow.ArrowException as error:
            raise DataError(
                f"{path}: where={condition.text} cannot be applied to the columns: {error}"
            ) from error
        return {group.id for group in fragment.row_groups}


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
