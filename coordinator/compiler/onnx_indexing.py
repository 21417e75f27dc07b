"""Operators that read and write elements by index, in ONNX."""

from typing import Any

import numpy as np
import torch

from coordinator.compiler.onnx_lowering import Context, Result, Value, translates

_INTEGERS = (torch.int64, torch.int32)


def scatter_along(
    context: Context, value: Value, source: Value, axis: int, places: str, reduction: str
) -> str:
    """Write or add the source's slices along one axis at the places of an int64 vector."""
    column = context.reshape(places, [-1] + [1] * (value.rank - 1 - axis))
    indices = context.op("Expand", column, context.op("Shape", source.name))
    return context.op(
        "ScatterElements", value.name, indices, source.name, axis=axis, reduction=reduction
    )


@translates("index.Tensor")
def _indexed(context: Context, value: Value, indices: list[Value | None]) -> Result:
    """One index tensor is a Gather; several are tuples for GatherND, with their axes in front."""
    axes, given = _given(context, indices)
    if len(axes) == 1:
        return context.op("Gather", value.name, given[0].name, axis=axes[0])
    order, back = _turns(value.rank, axes, context.result.dim())
    turned = _transposed(context, value.name, order)
    found = context.op("GatherND", turned, _tuples(context, given))
    return _transposed(context, found, back)


@translates("index_put.default")
def _put(
    context: Context, value: Value, indices: list[Value | None], source: Value, accumulate: bool
) -> Result:
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    if masks:
        return _put_where(context, value, indices, source, accumulate)
    axes, given = _given(context, indices)
    reduction = "add" if accumulate else "none"
    if axes[0] and _fills(source, value, axes, given):
        return scatter_along(context, value, source, axes[0], given[0].name, reduction)
    rank = max(index.rank for index in given) + value.rank - len(axes)
    order, back = _turns(value.rank, axes, rank)
    tuples = _tuples(context, given)
    updates = context.operand(source, value.dtype)
    if source.rank < rank or any(size == 1 for size in source.shape):
        updates = _spread_over_window(context, updates, value, axes, tuples, back)
    updates = _transposed(context, updates, _inverse(back))
    turned = _transposed(context, value.name, order)
    found = context.op("ScatterND", turned, tuples, updates, reduction=reduction)
    return _transposed(context, found, _inverse(order))


def _fills(source: Value, value: Value, axes: list[int], given: list[Value]) -> bool:
    """Whether the source has a whole slice for each place of one vector of places."""
    if len(axes) != 1 or given[0].rank != 1:
        return False
    sizes = [*value.shape[: axes[0]], *given[0].shape, *value.shape[axes[0] + 1 :]]
    return list(source.shape) == sizes


def _given(context: Context, indices: list[Value | None]) -> tuple[list[int], list[Value]]:
    """The indexed axes and their index tensors."""
    pairs = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if any(index.dtype not in _INTEGERS for _, index in pairs):
        raise context.unsupported(
            "a mask that selects elements makes a shape that depends on data: use torch.where, or "
            "multiply by the mask"
        )
    return [axis for axis, _ in pairs], [index for _, index in pairs]


def _turns(rank: int, axes: list[int], result_rank: int) -> tuple[list[int], list[int]]:
    """The order that brings the indexed axes to the front, and the one that puts what replaces them
    where torch does: in their place if they lie side by side, else in front.
    """
    order = axes + [axis for axis in range(rank) if axis not in axes]
    index_rank = result_rank - (rank - len(axes))
    first = axes[0] if axes == list(range(axes[0], axes[0] + len(axes))) else 0
    rest = list(range(index_rank, result_rank))
    return order, rest[:first] + list(range(index_rank)) + rest[first:]


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _transposed(context: Context, name: str, order: list[int]) -> str:
    return name if order == sorted(order) else context.op("Transpose", name, perm=order)


def _tuples(context: Context, indices: list[Value]) -> str:
    """Index tensors of one broadcast shape, joined along a new last axis."""
    names = [context.operand(index, torch.int64) for index in indices]
    total = names[0]
    for name in names[1:]:
        total = context.op("Add", total, name)
    shape = context.op("Shape", total)
    last = context.integers([-1])
    columns = [context.op("Unsqueeze", context.op("Expand", n, shape), last) for n in names]
    return columns[0] if len(columns) == 1 else context.op("Concat", *columns, axis=-1)


def _spread_over_window(
    context: Context, updates: str, value: Value, axes: list[int], tuples: str, back: list[int]
) -> str:
    """Values that broadcast over the indexed window, at its full size and in torch's order."""
    rest = [axis for axis in range(value.rank) if axis not in axes]
    sizes = context.op("Shape", value.name)
    parts = [context.op("Shape", tuples, end=-1)]
    if rest:
        parts.append(context.op("Gather", sizes, context.integers(rest), axis=0))
    shape = parts[0] if len(parts) == 1 else context.op("Concat", *parts, axis=0)
    return context.op("Expand", updates, context.op("Gather", shape, context.integers(back)))


def _put_where(
    context: Context, value: Value, indices: list[Value | None], source: Value, accumulate: bool
) -> str:
    """`value[mask] = number` as a selection; a tensor's shape would depend on the mask."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or any(size != 1 for size in source.shape):
        raise context.unsupported(
            "assigning a tensor to a mask's elements makes a shape that depends on data: use "
            "torch.where"
        )
    axes = context.integers(range(mask.rank, value.rank))
    wide = context.op("Unsqueeze", mask.name, axes) if mask.rank < value.rank else mask.name
    number = context.operand(source, value.dtype)
    if accumulate:
        number = context.op("Add", value.name, number)
    return context.op("Where", wide, number, value.name)


@translates("embedding.default")
def _embedded(context: Context, table: Value, indices: Value, *_: Any) -> Result:
    return context.op("Gather", table.name, indices.name, axis=0)


@translates("index_select.default")
def _rows(context: Context, value: Value, dimension: int, indices: Value) -> Result:
    return context.op("Gather", value.name, indices.name, axis=dimension % value.rank)


@translates("gather.default")
def _gathered(context: Context, value: Value, dimension: int, indices: Value, *_: Any) -> Result:
    return context.op("GatherElements", value.name, indices.name, axis=dimension % value.rank)


@translates("scatter_add.default", "scatter.src")
def _scattered(
    context: Context, value: Value, dimension: int, indices: Value, source: Value
) -> Result:
    reduction = "add" if "scatter_add" in str(context.node.target) else "none"
    return context.op(
        "ScatterElements", value.name, indices.name, source.name,
        axis=dimension % value.rank, reduction=reduction,
    )  # fmt: skip


@translates("scatter.value")
def _scattered_number(
    context: Context, value: Value, dimension: int, indices: Value, number: Any
) -> Result:
    source = context.op(
        "Expand", context.scalar(number, value.dtype), context.op("Shape", indices.name)
    )
    return context.op(
        "ScatterElements", value.name, indices.name, source, axis=dimension % value.rank
    )


def _diagonal_places(value: Value, offset: int, first: int, second: int) -> list[int]:
    """Where a diagonal lies in the two axes flattened to one."""
    rows, columns = int(value.shape[first]), int(value.shape[second])
    places = range(max(-offset, 0), min(rows, columns - offset))
    return [row * columns + row + offset for row in places]


def _flat_plane(context: Context, value: Value, first: int, second: int) -> tuple[str, list[int]]:
    """The value with two axes moved to the end and flattened, and the order that moved them."""
    order = [axis for axis in range(value.rank) if axis not in (first, second)] + [first, second]
    turned = _transposed(context, value.name, order)
    return context.reshape(turned, [0] * (value.rank - 2) + [-1]), order


@translates("diagonal.default")
def _diagonal(context: Context, value: Value, offset: int, first: int, second: int) -> Result:
    first, second = first % value.rank, second % value.rank
    flat, _ = _flat_plane(context, value, first, second)
    places = context.integers(_diagonal_places(value, offset, first, second))
    return context.op("Gather", flat, places, axis=value.rank - 2)


@translates("diagonal_scatter.default")
def _diagonal_put(
    context: Context, value: Value, source: Value, offset: int, first: int, second: int
) -> Result:
    first, second = first % value.rank, second % value.rank
    flat, order = _flat_plane(context, value, first, second)
    places = context.integers(_diagonal_places(value, offset, first, second))
    indices = context.op("Expand", places, context.op("Shape", source.name))
    found = context.op("ScatterElements", flat, indices, source.name, axis=value.rank - 2)
    plane = [int(value.shape[first]), int(value.shape[second])]
    wide = context.reshape(found, [0] * (value.rank - 2) + plane)
    return _transposed(context, wide, _inverse(order))


def _window_places(size: int, window: int, step: int) -> Any:
    starts = np.arange(0, size - window + 1, step)
    return starts[:, None] + np.arange(window)


@translates("unfold.default")
def _unfolded(context: Context, value: Value, dimension: int, window: int, step: int) -> Result:
    """Windows along an axis, their places last."""
    axis = dimension % value.rank
    places = context.constant(_window_places(int(value.shape[axis]), window, step))
    found = context.op("Gather", value.name, places, axis=axis)
    order = [a for a in range(value.rank + 1) if a != axis + 1] + [axis + 1]
    return _transposed(context, found, order)
