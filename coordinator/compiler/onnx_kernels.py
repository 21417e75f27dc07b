"""Matrix products, convolutions, normalization and pooling in ONNX."""

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
    if any(more >= step for more, step in zip(output_padding, stride, strict=True)):
        raise context.unsupported("output_padding must be smaller than the stride on devices")
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
