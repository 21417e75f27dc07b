"""Poolings in ONNX."""

from math import prod

import torch
from torch import fx

from coordinator.compiler.convolution_gradients import spread
from coordinator.compiler.onnx_lowering import Context, Result, Value, translates

aten = torch.ops.aten


def _window(
    value: Value, kernel: list[int], stride: list[int], *others: list[int]
) -> list[list[int]]:
    count = value.rank - 2
    return [spread(v, count) for v in (kernel, stride or kernel, *others)]


def _ends(
    value: Value, pooled: torch.Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> list[int]:  # fmt: skip
    """Padding after the end that gives torch's output size, with ceil mode as without.

    (onnxruntime's own ceil mode may start a window behind the input; it is used only where the
    padding would be larger than it allows, which takes dilation.)
    """
    axes = zip(value.shape[2:], pooled.shape[2:], kernel, stride, padding, dilation, strict=True)
    return [
        max((count - 1) * step + reach * (width - 1) + 1 - size - before, 0)
        for size, count, width, step, before, reach in axes
    ]


@translates("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pooled(
    context: Context, features: Value, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil_mode: bool,
) -> Result:  # fmt: skip
    """torch counts indices within a plane, ONNX through the whole tensor.

    The latter are what the backward pass needs; the former are made only for others. Where nobody
    reads them they are not asked for: onnxruntime's kernel is ten times as fast without.
    """
    kernel, stride, padding, dilation = _window(features, kernel, stride, padding, dilation)
    ends = _ends(features, context.result, kernel, stride, padding, dilation)
    fits = all(end < width for end, width in zip(ends, kernel, strict=True))
    indices = [user for user in context.node.users if user.args[1] == 1 and user.users]
    names = context.ops(
        "MaxPool", 2 if indices else 1, features.name, kernel_shape=kernel, strides=stride,
        pads=padding + (ends if fits else padding), dilations=dilation, ceil_mode=int(not fits),
    )  # fmt: skip
    if not indices:
        return names[0], ""
    pooled, flat = names
    within = flat
    if any(_read_beside_backward(item) for item in indices):
        plane = prod(int(size) for size in features.shape[2:])
        within = context.op("Mod", flat, context.scalar(plane, torch.int64))
    context.flat_indices[within] = flat
    return pooled, within


def _read_beside_backward(indices: fx.Node) -> bool:
    """Whether anything but the backward pass reads the indices of a max-pool."""
    for user in indices.users:
        if user.target in (aten.detach.default, aten.alias.default):
            if _read_beside_backward(user):
                return True
        elif user.target not in _MAX_POOL_BACKWARD:
            return True
    return False


_MAX_POOL_BACKWARD = (
    aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default,
)  # fmt: skip


@translates("max_pool2d_with_indices_backward.default", "max_pool3d_with_indices_backward.default")
def _max_pool_backward(
    context: Context, gradient: Value, features: Value, kernel: list[int], stride: list[int],
    padding: list[int], dilation: list[int], ceil_mode: bool, indices: Value,
) -> Result:  # fmt: skip
    """Gradients go where the maxima were: unpooled where windows are disjoint, else added up."""
    kernel, stride, padding, dilation = _window(features, kernel, stride, padding, dilation)
    flat = context.flat_indices[indices.name]
    shape = context.op("Shape", features.name)
    if stride == kernel and not any(padding) and set(dilation) == {1} and not ceil_mode:
        return context.op(
            "MaxUnpool", gradient.name, flat, shape, kernel_shape=kernel, strides=stride
        )
    line = context.integers([-1])
    count = context.op("ReduceProd", shape, context.integers([0]), keepdims=1)
    zeros = context.op("Expand", context.scalar(0, gradient.dtype), count)
    added = context.op(
        "ScatterElements", zeros, context.op("Reshape", flat, line),
        context.op("Reshape", gradient.name, line), axis=0, reduction="add",
    )  # fmt: skip
    return context.op("Reshape", added, shape)


@translates("avg_pool2d.default", "avg_pool3d.default")
def _average_pooled(
    context: Context, features: Value, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Result:  # fmt: skip
    """Full windows only: `pooling_forms` takes the others apart."""
    kernel, stride, padding = _window(features, kernel, stride, padding)
    return context.op(
        "AveragePool", features.name, kernel_shape=kernel, strides=stride, pads=padding + padding,
        count_include_pad=int(count_include_pad),
    )  # fmt: skip


@translates("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")
def _adaptively_pooled(context: Context, features: Value, size: list[int]) -> Result:
    """Equal windows only: `pooling_forms` takes the others apart."""
    sizes = [int(v) for v in features.shape[-len(size) :]]
    kernel = [old // new for old, new in zip(sizes, size, strict=True)]
    return context.op("AveragePool", features.name, kernel_shape=kernel, strides=kernel)
