"""Matrix products, convolutions, normalization and pooling in ONNX."""

from math import prod
from typing import Any

import torch
from torch import fx

from coordinator.compiler.convolution_gradients import spread
from coordinator.compiler.onnx_lowering import Context, Result, Value, translates

aten = torch.ops.aten


def _untransposed(value: Value, context: Context) -> tuple[str, int]:
    """A matrix, and whether the product is to transpose it, which costs nothing."""
    node = value.node
    turned = node.target is aten.t.default or (
        node.target in (aten.permute.default, aten.transpose.int)
        and [axis % 2 for axis in _order(node)] == [1, 0]
    )
    if turned and isinstance(node.args[0], fx.Node):
        name = context.names[node.args[0]]
        if isinstance(name, str):
            return name, 1
    return value.name, 0


def _order(node: fx.Node) -> list[int]:
    if node.target is aten.permute.default:
        return list(node.args[1])  # type: ignore[arg-type]
    return [1, 0] if sorted(int(a) % 2 for a in node.args[1:3]) == [0, 1] else [0, 1]  # type: ignore[arg-type]


@translates("mm.default")
def _matrix_product(context: Context, left: Value, right: Value, *_: Any) -> Result:
    first, turn_first = _untransposed(left, context)
    second, turn_second = _untransposed(right, context)
    if not turn_first and not turn_second:
        return context.op("MatMul", first, second)
    return context.op("Gemm", first, second, transA=turn_first, transB=turn_second)


@translates("addmm.default")
def _affine(
    context: Context, bias: Value, left: Value, right: Value, beta: Any = 1, alpha: Any = 1
) -> Result:
    first, turn_first = _untransposed(left, context)
    second, turn_second = _untransposed(right, context)
    return context.op(
        "Gemm", first, second, bias.name, alpha=float(alpha), beta=float(beta),
        transA=turn_first, transB=turn_second,
    )  # fmt: skip


@translates("bmm.default", "matmul.default", "mv.default", "dot.default")
def _product(context: Context, left: Value, right: Value, *_: Any) -> Result:
    return context.op("MatMul", left.name, right.name)


@translates("baddbmm.default")
def _batched_affine(
    context: Context, bias: Value, left: Value, right: Value, beta: Any = 1, alpha: Any = 1
) -> Result:
    if beta != 1 or alpha != 1:
        raise context.unsupported("baddbmm with alpha or beta is not supported")
    return context.op("Add", bias.name, context.op("MatMul", left.name, right.name))


@translates("convolution.default")
def _convolved(
    context: Context, features: Value, weight: Value, bias: Value | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int,
) -> Result:  # fmt: skip
    count = weight.rank - 2
    stride, padding, dilation, output_padding = (
        spread(v, count) for v in (stride, padding, dilation, output_padding)
    )
    attributes: dict[str, Any] = {
        "strides": stride, "pads": padding + padding, "dilations": dilation, "group": groups,
        "kernel_shape": [int(size) for size in weight.shape[2:]],
    }  # fmt: skip
    operands = [features.name, weight.name] + ([bias.name] if bias is not None else [])
    if not transposed:
        return context.op("Conv", *operands, **attributes)
    return context.op("ConvTranspose", *operands, output_padding=output_padding, **attributes)


@translates("headwater::affine.default")
def _affine_by_channel(context: Context, features: Value, scale: Value, shift: Value) -> Result:
    """A normalization by mean 0 and variance 1, which are exact."""
    mean, variance = _channels(context, features, 0), _channels(context, features, 1)
    return context.op(
        "BatchNormalization", features.name, scale.name, shift.name, mean, variance, epsilon=0.0
    )


@translates("headwater::standardized.default")
def _standardized(
    context: Context, features: Value, scale: Value, shift: Value, epsilon: float
) -> Result:
    """With momentum 0 the operator's new statistics are the batch's own.

    onnxruntime writes them over the old ones, whoever else may read those. So the old ones are
    values that no other node reads: made from one of the features, and multiplied by 0.
    """
    axes = [0, *range(2, features.rank)]
    starts, ends = context.integers([0] * len(axes)), context.integers([1] * len(axes))
    corner = context.op("Slice", features.name, starts, ends, context.integers(axes))
    line = context.op("Squeeze", corner, context.integers(axes))
    mean, variance = context.op("Neg", line), context.op("Abs", line)
    return context.ops(
        "BatchNormalization", 3, features.name, scale.name, shift.name, mean, variance,
        epsilon=epsilon, momentum=0.0, training_mode=1,
    )  # fmt: skip


def _channels(context: Context, features: Value, number: int) -> str:
    """A number for each channel."""
    count = features.shape[1]
    fixed = isinstance(count, int)
    shape = (
        context.integers([count]) if fixed else context.op("Shape", features.name, start=1, end=2)
    )
    return context.op("Expand", context.scalar(number, features.dtype), shape)


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

    The latter are what the backward pass needs; the former are made only for others.
    """
    kernel, stride, padding, dilation = _window(features, kernel, stride, padding, dilation)
    ends = _ends(features, context.result, kernel, stride, padding, dilation)
    exact = all(end < width for end, width in zip(ends, kernel, strict=True))
    pooled, flat = context.ops(
        "MaxPool", 2, features.name, kernel_shape=kernel, strides=stride,
        pads=padding + (ends if exact else padding), dilations=dilation,
        ceil_mode=int(not exact),
    )  # fmt: skip
    plane = prod(int(size) for size in features.shape[2:])
    indices = [user for user in context.node.users if user.args[1] == 1]
    read = any(_read_beside_backward(item) for item in indices)
    within = context.op("Mod", flat, context.scalar(plane, torch.int64)) if read else flat
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
