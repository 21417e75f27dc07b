"""Arrow columns as NumPy arrays: numbers, lists of one length nested to any depth, and texts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.errors import DataError, require
from headwater.sources.fields import Origin


def _types() -> Any:
    return require("pyarrow.types", extra="parquet", purpose="read Parquet files")


def is_image(arrow_type: Any) -> bool:
    """Whether a column holds encoded images: binary, or a struct with a binary field `bytes`."""
    types = _types()
    if types.is_struct(arrow_type):
        index = arrow_type.get_field_index("bytes")
        return index >= 0 and is_image(arrow_type.field(index).type)
    return bool(types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


def column_values(
    array: Any, column: str, origin: Origin, *, texts: bool = False, stride: int = 1
) -> NDArray[Any]:
    """The values as [rows, …], texts too where `texts` is set; `stride` values belong to one row.

    Raises:
        DataError: a value is missing, lists differ in length, or the type is not one of these.
    """
    types = _types()
    if hasattr(array, "storage"):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        position = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise origin.error(column, position // stride, "there is no value (null)")
    if types.is_fixed_size_list(array.type):
        length = int(array.type.list_size)
    elif types.is_list(array.type) or types.is_large_list(array.type):
        length = _common_length(array, column, origin, stride)
    elif types.is_decimal(array.type):
        return np.asarray(array.cast("float64").to_numpy(zero_copy_only=False))
    elif types.is_integer(array.type) or types.is_floating(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    elif types.is_boolean(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False), np.bool_)
    elif texts and (types.is_string(array.type) or types.is_large_string(array.type)):
        return np.asarray(array.to_numpy(zero_copy_only=False), np.object_)
    else:
        raise DataError(
            f"{origin.path}: column {column!r} holds {array.type} values, which are no numbers"
        )
    deeper = stride * max(1, length)
    inner = column_values(array.flatten(), column, origin, texts=texts, stride=deeper)
    return inner.reshape(len(array), length, *inner.shape[1:])


def _common_length(array: Any, column: str, origin: Origin, stride: int) -> int:
    lengths = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False))
    if not len(lengths):
        return 0
    differs = lengths != lengths[0]
    if differs.any():
        position = int(differs.argmax())
        raise origin.error(
            column,
            position // stride,
            f"a list of {lengths[position]} values where earlier ones have {lengths[0]}; "
            "all lists of a column must have one length",
        )
    return int(lengths[0])
