"""Elementwise operators, comparisons and reductions in ONNX.

Operands are converted to the dtype that torch's rules of promotion give, which the trace knows.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from coordinator.compiler.onnx_graph import element_type
from coordinator.compiler.onnx_lowering import Context, Result, Translation, Value, translates

_UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos",
    "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log", "neg": "Neg",
    "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round", "sigmoid": "Sigmoid",
    "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
    "isnan": "IsNaN", "isinf": "IsInf",
}  # fmt: skip
_BINARY = {"mul": "Mul", "maximum": "Max", "minimum": "Min"}
_COMPARISONS = {
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip
_BITS = {"and": "And", "or": "Or", "xor": "Xor"}


def _common(*values: Any) -> torch.dtype:
    """The dtype in which torch computes with these operands."""
    examples = [
        value.node.meta["val"] if isinstance(value, Value) and not value.is_size
        else 1 if isinstance(value, Value) else value
        for value in values
    ]  # fmt: skip
    tensors = [value for value in examples if isinstance(value, torch.Tensor)]
    if not tensors:
        return torch.float32
    if len(values) == 1:
        return tensors[0].dtype
    return torch.result_type(*examples)


def _unary(kind: str) -> Translation:
    def translate(context: Context, value: Value, *_: Any) -> Result:
        dtype = context.result.dtype if context.result.dtype != torch.bool else value.dtype
        return context.op(kind, context.operand(value, dtype))

    return translate


def _binary(kind: str) -> Translation:
    def translate(context: Context, left: Any, right: Any, *_: Any) -> Result:
        dtype = context.result.dtype
        if dtype == torch.bool and kind == "Mul":
            return context.op("And", context.operand(left, dtype), context.operand(right, dtype))
        return context.op(kind, context.operand(left, dtype), context.operand(right, dtype))

    return translate


def _comparison(kind: str) -> Translation:
    def translate(context: Context, left: Any, right: Any) -> Result:
        dtype = _common(left, right)
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32
        return context.op(kind, context.operand(left, dtype), context.operand(right, dtype))

    return translate


for _name, _kind in _UNARY.items():
    translates(f"{_name}.default")(_unary(_kind))
for _name, _kind in _BINARY.items():
    translates(
        *(f"{_name}.{o}" for o in getattr(torch.ops.aten, _name).overloads() if "out" not in o)
    )(_binary(_kind))
for _name, _kind in _COMPARISONS.items():
    translates(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_kind))


@translates("ne.Tensor", "ne.Scalar")
def _different(context: Context, left: Any, right: Any) -> Result:
    return context.op("Not", str(_comparison("Equal")(context, left, right)))


@translates("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def _sum(context: Context, left: Any, right: Any, alpha: Any = 1) -> Result:
    dtype = context.result.dtype
    name = context.node.target._schema.name  # type: ignore[union-attr]
    first, second = context.operand(left, dtype), context.operand(right, dtype)
    if alpha != 1:
        second = context.op("Mul", second, context.scalar(alpha, dtype))
    if name == "aten::add":
        return context.op("Or" if dtype == torch.bool else "Add", first, second)
    pair = (second, first) if name == "aten::rsub" else (first, second)
    if name == "aten::rsub" and alpha != 1:
        raise context.unsupported("rsub with alpha is not supported")
    return context.op("Sub", *pair)


@translates("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _quotient(context: Context, left: Any, right: Any, rounding_mode: str | None = None) -> Result:
    dtype = context.result.dtype
    pair = context.operand(left, dtype), context.operand(right, dtype)
    if rounding_mode == "floor":
        return _floored(context, *pair, dtype)
    found = context.op("Div", *pair)
    if rounding_mode == "trunc" and dtype.is_floating_point:
        return context.op(
            "Mul", context.op("Sign", found), context.op("Floor", context.op("Abs", found))
        )
    return found


@translates("floor_divide.default", "floor_divide.Scalar")
def _floor_quotient(context: Context, left: Any, right: Any) -> Result:
    dtype = context.result.dtype
    return _floored(context, context.operand(left, dtype), context.operand(right, dtype), dtype)


def _floored(context: Context, left: str, right: str, dtype: torch.dtype) -> str:
    """Exact for all integers: ONNX's integer Div truncates, which is one too many where a remainder
    is left and has another sign than the divisor.
    """
    if dtype.is_floating_point:
        return context.op("Floor", context.op("Div", left, right))
    quotient, zero = context.op("Div", left, right), context.scalar(0, dtype)
    rest = context.op("Mod", left, right, fmod=1)
    turned = context.op("Xor", context.op("Less", rest, zero), context.op("Less", right, zero))
    is_left = context.op("Not", context.op("Equal", rest, zero))
    extra = context.op("Cast", context.op("And", is_left, turned), to=element_type(dtype))
    return context.op("Sub", quotient, extra)


@translates("remainder.Tensor", "remainder.Scalar")
def _remainder(context: Context, left: Any, right: Any) -> Result:
    dtype = context.result.dtype
    first, second = context.operand(left, dtype), context.operand(right, dtype)
    if not dtype.is_floating_point:
        return context.op("Mod", first, second)
    whole = context.op("Floor", context.op("Div", first, second))
    return context.op("Sub", first, context.op("Mul", whole, second))


@translates("fmod.Tensor", "fmod.Scalar")
def _fmod(context: Context, left: Any, right: Any) -> Result:
    dtype = context.result.dtype
    return context.op("Mod", context.operand(left, dtype), context.operand(right, dtype), fmod=1)


@translates("pow.Tensor_Scalar", "pow.Scalar", "pow.Tensor_Tensor")
def _power(context: Context, base: Any, exponent: Any) -> Result:
    dtype = context.result.dtype
    name = context.operand(base, dtype)
    if exponent == 2:
        return context.op("Mul", name, name)
    if exponent == 3:
        return context.op("Mul", context.op("Mul", name, name), name)
    if exponent == 0.5:
        return context.op("Sqrt", name)
    return context.op("Pow", name, context.operand(exponent, dtype))


_FACTORS = {"log2": math.log2(math.e), "log10": math.log10(math.e)}


@translates("log2.default", "log10.default")
def _logarithm(context: Context, value: Value) -> Result:
    dtype = context.result.dtype
    factor = _FACTORS[context.node.target._opname]  # type: ignore[union-attr]
    natural = context.op("Log", context.operand(value, dtype))
    return context.op("Mul", natural, context.scalar(factor, dtype))


@translates("exp2.default")
def _power_of_two(context: Context, value: Value) -> Result:
    dtype = context.result.dtype
    return context.op("Pow", context.scalar(2, dtype), context.operand(value, dtype))


@translates("erfc.default")
def _complementary_error(context: Context, value: Value) -> Result:
    """1 - erf(x): right to rounding of 1, not relative to its own small values."""
    dtype = context.result.dtype
    return context.op(
        "Sub", context.scalar(1, dtype), context.op("Erf", context.operand(value, dtype))
    )


@translates("trunc.default")
def _whole(context: Context, value: Value) -> Result:
    name = context.operand(value, context.result.dtype)
    return context.op("Mul", context.op("Sign", name), context.op("Floor", context.op("Abs", name)))


@translates("atan2.default")
def _angle(context: Context, rise: Value, run: Value) -> Result:
    """atan(rise / run), half a turn further where run is negative; a quarter where it is 0."""
    dtype = context.result.dtype
    first, second = context.operand(rise, dtype), context.operand(run, dtype)
    zero, half_turn = context.scalar(0, dtype), context.scalar(math.pi, dtype)
    upper = context.op("GreaterOrEqual", first, zero)
    turn = context.op("Where", upper, half_turn, context.op("Neg", half_turn))
    level = context.op("Equal", second, zero)
    safe = context.op("Where", level, context.scalar(1, dtype), second)
    angle = context.op("Atan", context.op("Div", first, safe))
    behind = context.op("Where", context.op("Less", second, zero), turn, zero)
    quarter = context.op("Mul", context.op("Sign", first), context.scalar(math.pi / 2, dtype))
    return context.op("Where", level, quarter, context.op("Add", angle, behind))


@translates("rsqrt.default")
def _reciprocal_root(context: Context, value: Value) -> Result:
    return context.op(
        "Reciprocal", context.op("Sqrt", context.operand(value, context.result.dtype))
    )


@translates("log1p.default")
def _log_of_one_plus(context: Context, value: Value) -> Result:
    """log(1+x) = log(u) * x / (u-1) with u = fl(1+x): exact where the plain form cancels.

    Goldberg, "What every computer scientist should know about floating-point arithmetic", ACM
    Computing Surveys, 1991, theorem 4.
    """
    dtype = context.result.dtype
    name, one = context.operand(value, dtype), context.scalar(1, dtype)
    shifted = context.op("Add", name, one)
    gap = context.op("Sub", shifted, one)
    nothing = context.op("Equal", gap, context.scalar(0, dtype))
    safe = context.op("Where", nothing, one, gap)
    ratio = context.op("Mul", context.op("Div", name, safe), context.op("Log", shifted))
    return context.op("Where", nothing, name, ratio)


@translates("expm1.default")
def _exp_minus_one(context: Context, value: Value) -> Result:
    """2 sinh(x/2) exp(x/2): no cancellation near zero. Below -80 it is -1, and sinh infinite."""
    dtype = context.result.dtype
    near = context.op("Max", context.operand(value, dtype), context.scalar(-80, dtype))
    half = context.op("Mul", near, context.scalar(0.5, dtype))
    twice = context.op("Mul", context.op("Sinh", half), context.scalar(2, dtype))
    return context.op("Mul", twice, context.op("Exp", half))


@translates("gelu.default")
def _gelu(context: Context, value: Value, approximate: str) -> Result:
    return context.op("Gelu", value.name, approximate=approximate)


@translates("threshold_backward.default")
def _threshold_backward(context: Context, gradient: Value, value: Value, threshold: Any) -> Result:
    """A product with a mask. ReLU's own output, never negative, is made the mask in one pass: its
    product with nearly the largest float, cut at 1, is 1 for all but zero (and for subnormals
    below 3.3e-39 a part of 1).
    """
    producer = value.node
    while producer.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
        producer = producer.args[0]  # type: ignore[assignment]
    if threshold == 0 and producer.target is torch.ops.aten.relu.default:
        mask = context.op("HardSigmoid", value.name, alpha=3e38, beta=0.0)
        return context.op("Mul", gradient.name, mask)
    above = context.op("Greater", value.name, context.scalar(threshold, value.dtype))
    return context.op("Mul", gradient.name, context.cast(above, torch.bool, gradient.dtype))


@translates("clamp.default", "clamp.Tensor", "hardtanh.default")
def _clamp(context: Context, value: Value, low: Any = None, high: Any = None) -> Result:
    dtype = context.result.dtype
    name = context.operand(value, dtype)
    if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
        return context.op("Clip", name, context.operand(low, dtype), context.operand(high, dtype))
    if low is not None:
        name = context.op("Max", name, context.operand(low, dtype))
    return name if high is None else context.op("Min", name, context.operand(high, dtype))


@translates("clamp_min.default")
def _at_least(context: Context, value: Value, low: Any) -> Result:
    return _clamp(context, value, low)


@translates("clamp_max.default")
def _at_most(context: Context, value: Value, high: Any) -> Result:
    return _clamp(context, value, None, high)


@translates("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(context: Context, condition: Value, left: Any, right: Any) -> Result:
    dtype = context.result.dtype
    names = context.operand(left, dtype), context.operand(right, dtype)
    return context.op("Where", context.operand(condition, torch.bool), *names)


def _bits(kind: str) -> Translation:
    def translate(context: Context, left: Any, right: Any) -> Result:
        dtype = context.result.dtype
        prefix = "" if dtype == torch.bool else "Bitwise"
        return context.op(
            prefix + kind, context.operand(left, dtype), context.operand(right, dtype)
        )

    return translate


for _name, _kind in _BITS.items():
    translates(f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar")(_bits(_kind))


def _logical(kind: str) -> Translation:
    def translate(context: Context, *values: Value) -> Result:
        return context.op(kind, *(context.operand(value, torch.bool) for value in values))

    return translate


for _name, _kind in {**_BITS, "not": "Not"}.items():
    translates(f"logical_{_name}.default")(_logical(_kind))


@translates("bitwise_not.default")
def _bitwise_not(context: Context, value: Value) -> Result:
    return context.op("Not" if value.dtype == torch.bool else "BitwiseNot", value.name)


@translates("_to_copy.default")
def _converted(context: Context, value: Value, *_: Any) -> Result:
    if context.result.dtype == torch.bool:
        zero = context.scalar(0, value.dtype)
        if value.dtype != torch.bool:
            return context.op("Not", context.op("Equal", value.name, zero))
    return context.cast(value.name, value.dtype, context.result.dtype)


def axes_of(dimensions: Any, rank: int) -> list[int]:
    """Dimensions as numbers from 0; none or an empty list means all."""
    if dimensions is None or dimensions == []:
        return list(range(rank))
    listed: Sequence[int] = dimensions if isinstance(dimensions, list) else [dimensions]
    return [axis % rank for axis in listed] if rank else []


def _reduction(kind: str) -> Translation:
    def translate(
        context: Context, value: Value, dimensions: Any = None, keep: Any = False, *_: Any
    ) -> Result:
        keep = keep if isinstance(keep, bool) else False
        dimensions = dimensions if isinstance(dimensions, list | int) else None
        name = context.operand(value, context.result.dtype)
        axes = axes_of(dimensions, value.rank)
        if not axes:
            return name
        return context.op(kind, name, context.integers(axes), keepdims=int(keep))

    return translate


translates("sum.default", "sum.dim_IntList")(_reduction("ReduceSum"))
translates("mean.default", "mean.dim")(_reduction("ReduceMean"))
translates("amax.default", "max.default")(_reduction("ReduceMax"))
translates("amin.default", "min.default")(_reduction("ReduceMin"))
translates("prod.default", "prod.dim_int")(_reduction("ReduceProd"))


@translates("any.default", "any.dim", "any.dims")
def _any(context: Context, value: Value, dimensions: Any = None, keep: bool = False) -> Result:
    number = context.cast(context.operand(value, torch.bool), torch.bool, torch.int32)
    axes = context.integers(axes_of(dimensions, value.rank))
    found = context.op("ReduceMax", number, axes, keepdims=int(keep))
    return context.cast(found, torch.int32, torch.bool)


@translates("argmax.default", "argmin.default")
def _arg_extreme(context: Context, value: Value, dimension: Any, keep: bool) -> Result:
    kind = "ArgMax" if "argmax" in str(context.node.target) else "ArgMin"
    name = context.operand(value, torch.int32) if value.dtype == torch.bool else value.name
    if dimension is None:
        flat = context.reshape(name, [-1])
        return context.op(kind, flat, axis=0, keepdims=0)
    return context.op(kind, name, axis=dimension % value.rank, keepdims=int(keep))


@translates("max.dim", "min.dim")
def _extreme(context: Context, value: Value, dimension: int, keep: bool) -> Result:
    kind = "Max" if "max" in str(context.node.target) else "Min"
    axis = dimension % value.rank
    found = context.op(f"Reduce{kind}", value.name, context.integers([axis]), keepdims=int(keep))
    return found, context.op(f"Arg{kind}", value.name, axis=axis, keepdims=int(keep))


@translates("var_mean.correction", "var.correction")
def _variance(
    context: Context,
    value: Value,
    dimensions: Any = None,
    correction: Any = None,
    keep: bool = False,
) -> Result:
    axes = axes_of(dimensions, value.rank)
    names = context.integers(axes)
    mean = context.op("ReduceMean", value.name, names, keepdims=1)
    centred = context.op("Sub", value.name, mean)
    square = context.op("Mul", centred, centred)
    found = context.op("ReduceMean", square, names, keepdims=int(keep))
    offset = 1 if correction is None else correction
    if offset:
        found = context.op("Mul", found, _bessel(context, value, axes, offset))
    if "var_mean" not in str(context.node.target):
        return found
    return found, mean if keep else context.op("Squeeze", mean, names)


def _bessel(context: Context, value: Value, axes: list[int], offset: float) -> str:
    """n / (n - offset), with n counted when the graph runs."""
    sizes = context.op("Gather", context.op("Shape", value.name), context.integers(axes), axis=0)
    count = context.op("ReduceProd", sizes, keepdims=0)
    number = context.op("Cast", count, to=element_type(value.dtype))
    fewer = context.op("Sub", number, context.scalar(offset, value.dtype))
    return context.op("Div", number, fewer)


@translates("cumsum.default")
def _running_sum(context: Context, value: Value, dimension: int, *_: Any) -> Result:
    axis = context.scalar(dimension, torch.int64)
    return context.op("CumSum", context.operand(value, context.result.dtype), axis)


@translates("_softmax.default", "_log_softmax.default")
def _softmax(context: Context, value: Value, dimension: int, *_: Any) -> Result:
    """Along the last dimension; another is spelled out, for which onnxruntime would turn the
    whole tensor over and back.
    """
    log = "log" in str(context.node.target)
    axis = dimension % max(value.rank, 1)
    if axis >= value.rank - 1:
        return context.op("LogSoftmax" if log else "Softmax", value.name, axis=axis)
    axes = context.integers([axis])
    highest = context.op("ReduceMax", value.name, axes, keepdims=1)
    below = context.op("Sub", value.name, highest)
    raised = context.op("Exp", below)
    total = context.op("ReduceSum", raised, axes, keepdims=1)
    if log:
        return context.op("Sub", below, context.op("Log", total))
    return context.op("Div", raised, total)
