"""Operators that move, select, join and create elements, in ONNX."""

from typing import Any

import torch

from coordinator.compiler.onnx_indexing import scatter_along
from coordinator.compiler.onnx_lowering import Context, Result, Value, translates

_END = 2**63 - 1


@translates(
    "alias.default", "clone.default", "detach.default", "lift_fresh_copy.default",
    "contiguous.default",
)  # fmt: skip
def _same(context: Context, value: Value, *_: Any) -> Result:
    return value.name


@translates("copy.default")
def _copied(context: Context, value: Value, source: Value, *_: Any) -> Result:
    """The source in the shape and dtype of what it overwrites."""
    name = context.operand(source, value.dtype)
    if source.shape == value.shape:
        return name
    return context.op("Expand", name, context.op("Shape", value.name))


@translates("view.default", "reshape.default", "_unsafe_view.default")
def _reshaped(context: Context, value: Value, shape: list[Any]) -> Result:
    return context.op("Reshape", value.name, context.sizes(shape, infer=True))


@translates("permute.default")
def _permuted(context: Context, value: Value, order: list[int]) -> Result:
    return context.op("Transpose", value.name, perm=[axis % value.rank for axis in order])


@translates("transpose.int")
def _transposed(context: Context, value: Value, first: int, second: int) -> Result:
    order = list(range(value.rank))
    order[first], order[second] = order[second], order[first]
    return context.op("Transpose", value.name, perm=order)


@translates("t.default")
def _matrix_transposed(context: Context, value: Value) -> Result:
    return context.op("Transpose", value.name, perm=[1, 0]) if value.rank == 2 else value.name


@translates("unsqueeze.default")
def _unsqueezed(context: Context, value: Value, dimension: int) -> Result:
    axis = dimension % (value.rank + 1)
    return context.op("Unsqueeze", value.name, context.integers([axis]))


@translates("squeeze.dim", "squeeze.dims")
def _squeezed(context: Context, value: Value, dimensions: Any) -> Result:
    listed = dimensions if isinstance(dimensions, list) else [dimensions]
    axes = [axis % value.rank for axis in listed if value.shape[axis % value.rank] == 1]
    return context.op("Squeeze", value.name, context.integers(axes)) if axes else value.name


@translates("expand.default")
def _expanded(context: Context, value: Value, shape: list[Any], *_: Any) -> Result:
    """ONNX keeps a size where the target says 1; only true repetitions need a size."""
    lead = len(shape) - value.rank
    wanted: list[Any] = []
    for axis, size in enumerate(shape):
        old = value.shape[axis - lead] if axis >= lead else 1
        repeated = (
            isinstance(old, int) and old == 1 and not (isinstance(size, int) and size in (1, -1))
        )
        wanted.append(size if repeated else 1)
    if lead == 0 and all(isinstance(size, int) and size == 1 for size in wanted):
        return value.name
    return context.op("Expand", value.name, context.sizes(wanted))


@translates("repeat.default")
def _repeated(context: Context, value: Value, repeats: list[Any]) -> Result:
    name = value.name
    if len(repeats) > value.rank:
        name = context.op("Unsqueeze", name, context.integers(range(len(repeats) - value.rank)))
    return context.op("Tile", name, context.sizes(repeats))


@translates("slice.Tensor")
def _sliced(
    context: Context, value: Value, dimension: int, start: Any, end: Any, step: int
) -> Result:
    start = 0 if start is None else start
    end = _END if end is None else end
    axis = dimension % value.rank
    whole = isinstance(end, int) and isinstance(value.shape[axis], int) and end >= value.shape[axis]
    if isinstance(start, int) and start == 0 and step == 1 and (whole or end == _END):
        return value.name
    bounds = (context.sizes([start]), context.sizes([end]))
    return context.op(
        "Slice", value.name, *bounds, context.integers([axis]), context.integers([step])
    )


@translates("slice_scatter.default")
def _slice_replaced(
    context: Context, value: Value, source: Value, dimension: int, start: Any, end: Any, step: int
) -> Result:
    """What lies before, the source, what lies after."""
    axis = dimension % value.rank
    size = value.shape[axis]
    if start in (0, None) and end in (_END, None) and step == 1:
        return context.operand(source, value.dtype)  # as in x[:, 0] with an open batch
    if not all(isinstance(v, int | None) for v in (size, start, end)):
        raise context.unsupported("assigning to a slice of the batch is not supported")
    if step != 1:
        places = list(range(size))[slice(start, end, step)]
        return scatter_along(context, value, source, axis, context.integers(places), "none")
    start = min(start or 0, size) % (size + 1) if (start or 0) >= 0 else size + start
    end = size if end is None else min(end, size) if end >= 0 else size + end
    pieces = []
    if start > 0:
        pieces.append(_piece(context, value.name, axis, 0, start))
    if end > start:
        pieces.append(context.operand(source, value.dtype))
    if end < size:
        pieces.append(_piece(context, value.name, axis, end, size))
    return pieces[0] if len(pieces) == 1 else context.op("Concat", *pieces, axis=axis)


def _piece(context: Context, name: str, axis: int, start: int, end: int) -> str:
    return context.op("Slice", name, *(context.integers([v]) for v in (start, end, axis)))


@translates("select.int")
def _selected(context: Context, value: Value, dimension: int, index: Any) -> Result:
    place = context.operand(index, torch.int64)
    return context.op("Gather", value.name, place, axis=dimension % value.rank)


@translates("select_scatter.default")
def _place_replaced(
    context: Context, value: Value, source: Value, dimension: int, index: int
) -> Result:
    axis = dimension % value.rank
    row = context.op("Unsqueeze", source.name, context.integers([axis]))
    size = value.shape[axis]
    index = index % size
    pieces = [row]
    if index > 0:
        pieces.insert(0, _piece(context, value.name, axis, 0, index))
    if index < size - 1:
        pieces.append(_piece(context, value.name, axis, index + 1, size))
    return pieces[0] if len(pieces) == 1 else context.op("Concat", *pieces, axis=axis)


@translates("cat.default")
def _joined(context: Context, values: list[Value], dimension: int) -> Result:
    rank = context.result.dim()
    parts = [context.operand(v, context.result.dtype) for v in values if v.shape != (0,)]
    return parts[0] if len(parts) == 1 else context.op("Concat", *parts, axis=dimension % rank)


@translates("stack.default")
def _stacked(context: Context, values: list[Value], dimension: int) -> Result:
    axis = dimension % (values[0].rank + 1)
    parts = [context.op("Unsqueeze", value.name, context.integers([axis])) for value in values]
    return parts[0] if len(parts) == 1 else context.op("Concat", *parts, axis=axis)


@translates("split.Tensor", "split_with_sizes.default", "unbind.int")
def _split(context: Context, value: Value, sizes: Any, dimension: int = 0) -> Result:
    unbinding = "unbind" in str(context.node.target)
    axis = (sizes if unbinding else dimension) % value.rank
    parts = [part.shape for part in context.node.meta["val"]]
    lengths = [1 if unbinding else part[axis] for part in parts]
    if not all(isinstance(length, int) for length in lengths):
        raise context.unsupported("splitting the batch is not supported")
    names = context.ops("Split", len(parts), value.name, context.integers(lengths), axis=axis)
    if not unbinding:
        return names
    return tuple(context.op("Squeeze", name, context.integers([axis])) for name in names)


@translates("constant_pad_nd.default")
def _padded(context: Context, value: Value, pads: list[int], fill: Any) -> Result:
    """torch lists pairs from the last dimension backwards; ONNX all starts, then all ends."""
    starts, ends = [0] * value.rank, [0] * value.rank
    for pair in range(len(pads) // 2):
        starts[value.rank - 1 - pair], ends[value.rank - 1 - pair] = pads[2 * pair : 2 * pair + 2]
    return context.op(
        "Pad", value.name, context.integers(starts + ends), context.scalar(fill, value.dtype)
    )


@translates("headwater::padded.default")
def _zero_padded(context: Context, value: Value, before: list[int], after: list[int]) -> Result:
    whole = [0] * (value.rank - len(before))
    return context.op("Pad", value.name, context.integers([*whole, *before, *whole, *after]))


@translates("flip.default")
def _flipped(context: Context, value: Value, dimensions: list[int]) -> Result:
    axes = [axis % value.rank for axis in dimensions]
    count = len(axes)
    return context.op(
        "Slice", value.name, context.integers([-1] * count), context.integers([-_END] * count),
        context.integers(axes), context.integers([-1] * count),
    )  # fmt: skip


@translates("tril.default", "triu.default")
def _triangle(context: Context, value: Value, diagonal: int) -> Result:
    upper = int("triu" in str(context.node.target))
    name = context.operand(value, torch.int64) if value.dtype == torch.bool else value.name
    found = context.op("Trilu", name, context.scalar(diagonal, torch.int64), upper=upper)
    return context.cast(found, torch.int64, torch.bool) if value.dtype == torch.bool else found


@translates("sym_size.int")
def _size(context: Context, value: Value, dimension: int) -> Result:
    axis = dimension % value.rank
    return context.op("Shape", value.name, start=axis, end=axis + 1)


@translates("sym_numel.default")
def _element_count(context: Context, value: Value) -> Result:
    shape = context.op("Shape", value.name)
    return context.op("ReduceProd", shape, context.integers([0]), keepdims=1)


@translates(
    "full.default", "zeros.default", "ones.default", "empty.memory_format", "empty_permuted.default"
)
def _filled(context: Context, shape: list[Any], fill: Any = 0, *_: Any) -> Result:
    if "ones" in str(context.node.target):
        fill = 1
    return _repeat(context, fill if isinstance(fill, int | float) else 0, shape)


@translates("new_empty_strided.default")
def _room(context: Context, value: Value, shape: list[Any], *_: Any) -> Result:
    """Room that torch overwrites in full: the gradient of an assignment."""
    return _repeat(context, 0, shape)


@translates("full_like.default", "zeros_like.default", "ones_like.default")
def _filled_like(context: Context, value: Value, fill: Any = 0, *_: Any) -> Result:
    name = str(context.node.target)
    number = 1 if "ones_like" in name else fill if "full_like" in name else 0
    scalar = context.scalar(number, context.result.dtype)
    if all(isinstance(size, int) for size in value.shape):
        return _repeat(context, number, list(value.shape))
    return context.op("Expand", scalar, context.op("Shape", value.name))


def _repeat(context: Context, fill: Any, shape: list[Any]) -> str:
    scalar = context.scalar(fill, context.result.dtype)
    return scalar if not shape else context.op("Expand", scalar, context.sizes(shape))


@translates("scalar_tensor.default")
def _scalar(context: Context, value: Any, *_: Any) -> Result:
    return context.operand(value, context.result.dtype)


@translates("arange.default", "arange.start", "arange.start_step")
def _range(context: Context, *values: Any) -> Result:
    bounds = {"default": 1, "start": 2, "start_step": 3}[context.node.target._overloadname]  # type: ignore[union-attr]
    given = list(values[:bounds])
    start, end, step = ([0, *given, 1] if bounds == 1 else [*given, 1])[:3]
    dtype = context.result.dtype
    return context.op("Range", *(context.operand(value, dtype) for value in (start, end, step)))


@translates("as_strided.default")
def _restrided(
    context: Context, value: Value, shape: list[Any], strides: list[Any], offset: Any = None
) -> Result:
    """torch's own decompositions write some reshapes of dense tensors this way."""
    dense = value.node.meta["val"].is_contiguous() and context.result.is_contiguous()
    if offset or not dense or context.result.numel() != value.node.meta["val"].numel():
        raise context.unsupported("as_strided is supported only where it is a reshape")
    return context.op("Reshape", value.name, context.sizes(shape, infer=True))
