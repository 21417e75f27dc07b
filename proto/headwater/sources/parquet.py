"""Parquet: one file, or a folder of files as Spark writes it, read in slices of row groups.

Data that fits the memory budget (option `memory_mib`, in compact form) is read and decoded once and
kept. Anything larger streams: the row groups in an order drawn from the seed, in slices of a
quarter of the budget or 1,024 rows, through a shuffle pool as large as the budget. So at any time
no more is held than twice the budget, one batch, and what pyarrow buffers of the pages it reads.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.batch import Batch, TensorSignature
from headwater.sources.arrow import is_image
from headwater.sources.binding import Binding, check_options, flag_option, memory_bytes
from headwater.sources.columns import COLUMN_OPTIONS, choose_fields
from headwater.sources.fields import Chunk, Fields, example_bytes, refuse_empty
from headwater.sources.filters import parse_condition
from headwater.sources.images import ImageDecoder
from headwater.sources.order import (
    ArraySource,
    check_batch_size,
    example_order,
    regroup,
    seeded,
    shuffle_stream,
    slice_rows,
)
from headwater.sources.parquet_reader import ParquetReader, open_parquet, parquet_files

OPTIONS = (*COLUMN_OPTIONS, "where", "memory_mib", "resize")


class ParquetSource:
    """Examples from Parquet files, kept in memory where they fit and streamed where they don't."""

    def __init__(self, name: str, reader: ParquetReader, fields: Fields, budget: int) -> None:
        self.name = name
        self._reader = reader
        self._fields = fields
        self._count = refuse_empty(name, reader.count())
        self._capacity = max(1, budget // max(1, example_bytes(reader.first())))
        self._kept: ArraySource | None = None

    def example_count(self) -> int:
        """The number of rows that the condition takes."""
        return self._count

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """One pass over the examples; see `DataSource`."""
        check_batch_size(batch_size)
        if self._count <= self._capacity:
            self._kept = self._kept or self._load()
            yield from self._kept.batches(batch_size, seed)
            return
        for chunk in regroup(self._stream(seed), batch_size):
            yield self._fields.batch(chunk)

    def _stream(self, seed: int | None) -> Iterator[Chunk]:
        rows = slice_rows(self._capacity)
        groups = self._reader.groups
        if seed is None:
            return self._reader.chunks(groups, rows)
        order = example_order(len(groups), seed)
        chunks = self._reader.chunks([groups[index] for index in order], rows)
        return shuffle_stream(chunks, self._capacity, seeded(seed))

    def _load(self) -> ArraySource:
        """Read everything, into arrays of the final size at once."""
        held: list[NDArray[Any]] = []
        position = 0
        for chunk in self._reader.chunks(self._reader.groups, slice_rows(self._capacity)):
            if not held:
                held = [np.empty((self._count, *part.shape[1:]), part.dtype) for part in chunk]
            for place, part in zip(held, chunk, strict=True):
                place[position : position + len(part)] = part
            position += len(chunk[0])
        return ArraySource(self.name, self._fields, tuple(held))


def open_parquet_source(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> ParquetSource:
    """Open Parquet data and check its columns and its first row.

    Raises:
        DataError, UsageError, MissingExtraError: see `open_source`.
    """
    check_options(binding, OPTIONS)
    files = parquet_files(binding.path)
    where = binding.options.get("where")
    condition = parse_condition(where) if where else None
    with contextlib.closing(open_parquet(files[0])) as file:
        schema = file.schema_arrow
    fields = choose_fields(binding, schema.names, inputs, targets)
    resize = flag_option(binding, "resize")
    types = dict(zip(schema.names, schema.types, strict=True))
    decoders = {
        field: ImageDecoder(field.signature, resize=resize)
        for field in fields.inputs
        if len(field.columns) == 1 and is_image(types[field.columns[0]])
    }
    reader = ParquetReader(files, fields, decoders, condition)
    return ParquetSource(binding.path, reader, fields, memory_bytes(binding))
