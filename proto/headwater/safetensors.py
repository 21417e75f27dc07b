"""Tensors in a file, in the safetensors format: a JSON header and raw little-endian values.

The base install stays small, so this is our own reader and writer of the published format
(Hugging Face, "Safetensors", 2022): 8 bytes of header length, the header, the values without gaps.
Files that we write keep the layout's order with 8-byte values first, so that every value is aligned
and the float vector is one run that can be mapped.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headwater.batch import Array
from headwater.errors import PlanError
from headwater.layout import BLOCK_ELEMENTS, Layout, Weights

_MAXIMUM_HEADER_BYTES = 64 * 2**20
_NAME_OF_DTYPE = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPE_OF_NAME = {name: np.dtype(dtype) for dtype, name in _NAME_OF_DTYPE.items()}


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


def header_of(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The file's first bytes for (name, dtype, shape) in file order, padded to 8 bytes."""
    header: dict[str, Any] = {}
    offset = 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _NAME_OF_DTYPE[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def weights_header(layout: Layout) -> bytes:
    """The header of a weights file: integer buffers first, then the float vector."""
    ordered = layout.integer_buffers + layout.trainable + layout.float_buffers
    return header_of((spec.name, spec.dtype, spec.shape) for spec in ordered)


def weights_size_bytes(layout: Layout) -> int:
    """The exact size of a weights file of this layout."""
    return len(weights_header(layout)) + layout.size_bytes


def weights_chunks(layout: Layout, weights: Weights) -> Iterator[bytes]:
    """A weights file in pieces: the same weights and layout give the same bytes."""
    yield weights_header(layout)
    yield weights.integers.tobytes()
    for start in range(0, weights.floats.size, BLOCK_ELEMENTS):
        yield weights.floats[start : start + BLOCK_ELEMENTS].tobytes()


def write_weights(file: BinaryIO, layout: Layout, weights: Weights) -> None:
    """Write a weights file."""
    for chunk in weights_chunks(layout, weights):
        file.write(chunk)


def read_weights(path: str | os.PathLike[str], layout: Layout) -> Weights:
    """The weights in a file that any safetensors writer made, copied into flat vectors.

    Raises:
        PlanError: the file is damaged, or its tensors do not fit the layout.
    """
    return layout.flatten(read_tensors(path))


def map_weights(path: str | os.PathLike[str], layout: Layout) -> Weights:
    """The same, but the float vector is mapped read-only from disk where the file is one of ours.

    Raises:
        PlanError: the file is damaged, or its tensors do not fit the layout.
    """
    header = weights_header(layout)
    path = Path(path)
    try:
        with path.open("rb") as file:
            ours = file.read(len(header)) == header
        if not ours or path.stat().st_size != len(header) + layout.size_bytes:
            return read_weights(path, layout)
        data = np.asarray(np.memmap(path, np.uint8, "r"))[len(header) :]
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    at = 8 * layout.integer_count
    # The integers are a copy, since whoever keeps these few would keep the whole file mapped.
    return Weights(data[at:].view("<f4"), data[:at].view("<i8").copy())


def write_tensors(file: BinaryIO, tensors: Mapping[str, Array]) -> None:
    """Write named arrays, widest values first and then by name.

    Raises:
        PlanError: an array's dtype has no name in the format.
    """
    for name, array in tensors.items():
        if array.dtype.name not in _NAME_OF_DTYPE:
            raise PlanError(f"tensor {name!r} has dtype {array.dtype}, which cannot be stored")
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    file.write(header_of((name, array.dtype.name, array.shape) for name, array in ordered))
    for _, array in ordered:
        file.write(np.ascontiguousarray(array).tobytes())


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """All tensors of a safetensors file, mapped read-only from disk.

    Raises:
        PlanError: the file is missing, truncated or damaged; nothing outside the file is read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            entries, start = _read_header(file, path)
        if path.stat().st_size == start:
            return {entry.name: np.empty(entry.shape, entry.dtype) for entry in entries}
        data = np.memmap(path, np.uint8, "r", offset=start)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    return {entry.name: _view(data, entry) for entry in entries}


def _view(data: Array, entry: _Entry) -> Array:
    return data[entry.start : entry.end].view(entry.dtype).reshape(entry.shape)


def _read_header(file: BinaryIO, path: Path) -> tuple[list[_Entry], int]:
    total = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if total < 8 or length > min(_MAXIMUM_HEADER_BYTES, total - 8):
        raise PlanError(f"{path}: is not a safetensors file, or is truncated")
    try:
        header = json.loads(file.read(length))
        entries = [_entry(name, item) for name, item in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path}: has a damaged safetensors header: {error}") from error
    entries.sort(key=lambda entry: entry.start)
    _check_no_gaps(entries, total - 8 - length, path)
    return entries, 8 + length


def _entry(name: str, item: dict[str, Any]) -> _Entry:
    start, end = (int(value) for value in item["data_offsets"])
    shape = tuple(int(value) for value in item["shape"])
    dtype = _DTYPE_OF_NAME.get(item["dtype"])
    if dtype is None:
        raise ValueError(f"tensor {name!r} has the unsupported dtype {item['dtype']!r}")
    if min((*shape, 0)) < 0 or end - start != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has a size that does not match its shape")
    return _Entry(name, dtype, shape, start, end)


def _check_no_gaps(entries: list[_Entry], data_bytes: int, path: Path) -> None:
    expected = 0
    for entry in entries:
        if entry.start != expected:
            raise PlanError(f"{path}: tensor {entry.name!r} does not follow the one before it")
        expected = entry.end
    if expected != data_bytes:
        raise PlanError(f"{path}: holds {data_bytes} bytes of values, the header says {expected}")
