"""NumPy archives (`.npz`): one array a column, the first dimension counts examples."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.batch import TensorSignature
from headwater.errors import DataError
from headwater.sources.binding import Binding, check_options
from headwater.sources.columns import COLUMN_OPTIONS, choose_fields
from headwater.sources.fields import Fields, Origin, same_length
from headwater.sources.order import ArraySource

OPTIONS = COLUMN_OPTIONS
# What reading a damaged archive raises, from the zip's directory to an array's header.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: str, columns: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an archive by name, all or some; nothing is ever unpickled.

    Raises:
        DataError: the file is missing, truncated, no archive, or holds objects.
    """
    names = array_names(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in columns or names}
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from error


def array_names(path: str) -> tuple[str, ...]:
    """The names of the arrays in an archive."""
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from error


def array_source(name: str, fields: Fields, arrays: dict[str, NDArray[Any]]) -> ArraySource:
    """Check whole arrays and hold them in compact form."""
    for column in fields.columns:
        if arrays[column].ndim == 0:
            raise DataError(f"{name}: column {column!r} is a single value, not one an example")
    same_length(name, fields.columns, [arrays[column] for column in fields.columns])
    origin = Origin(name)
    chunk = []
    for field in fields.every:
        parts = [arrays[column] for column in field.columns]
        if len(parts) > 1 and any(part.ndim != 1 for part in parts):
            raise DataError(
                f"{name}: columns {field.label} fill one tensor, so each must hold one number an "
                "example"
            )
        values = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
        chunk.append(field.compact(values, origin))
    return ArraySource(name, fields, tuple(chunk))


def open_npz_source(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> ArraySource:
    """Read an archive's columns into memory and check every value."""
    check_options(binding, OPTIONS)
    fields = choose_fields(binding, array_names(binding.path), inputs, targets)
    return array_source(binding.path, fields, read_arrays(binding.path, fields.columns))
