"""Sorting and order statistics in ONNX, all by TopK: of two equal elements the earlier comes first.

torch leaves the order of equal elements open unless a sort is stable.
"""

from typing import Any

import torch

from coordinator.compiler.onnx_lowering import Context, Result, Value, translates


@translates("topk.default")
def _largest(
    context: Context, value: Value, count: Any, dimension: int, largest: bool, ordered: bool
) -> Result:
    return _ranked(context, value, context.sizes([count]), dimension, largest)


@translates("sort.default")
def _sorted(context: Context, value: Value, dimension: int, descending: bool) -> Result:
    return _ranked(context, value, _size(context, value, dimension), dimension, descending)


@translates("sort.stable")
def _sorted_stably(
    context: Context, value: Value, stable: bool, dimension: int, descending: bool
) -> Result:
    return _sorted(context, value, dimension, descending)


@translates("kthvalue.default")
def _of_rank(context: Context, value: Value, rank: Any, dimension: int, keep: bool) -> Result:
    ranked = _ranked(context, value, context.sizes([rank]), dimension, largest=False)
    return _last(context, ranked, value, dimension, keep)


@translates("median.dim")
def _median(context: Context, value: Value, dimension: int, keep: bool) -> Result:
    """The lower of the two in the middle."""
    size = _size(context, value, dimension)
    half = context.op("Div", context.op("Add", size, context.integers([1])), context.integers([2]))
    ranked = _ranked(context, value, half, dimension, largest=False)
    return _last(context, ranked, value, dimension, keep)


@translates("median.default")
def _median_of_all(context: Context, value: Value) -> Result:
    flat = context.reshape(value.name, [-1])
    size = context.op("Shape", flat)
    half = context.op("Div", context.op("Add", size, context.integers([1])), context.integers([2]))
    lower, _ = context.ops("TopK", 2, flat, half, axis=0, largest=0, sorted=1)
    return context.op("Gather", lower, context.scalar(-1, torch.int64), axis=0)


def _ranked(
    context: Context, value: Value, count: str, dimension: int, largest: bool
) -> tuple[str, ...]:
    """The values in order and their places."""
    axis = dimension % value.rank
    return context.ops("TopK", 2, value.name, count, axis=axis, largest=int(largest), sorted=1)


def _last(
    context: Context, ranked: tuple[str, ...], value: Value, dimension: int, keep: bool
) -> tuple[str, ...]:
    place = context.integers([-1]) if keep else context.scalar(-1, torch.int64)
    return tuple(context.op("Gather", n, place, axis=dimension % value.rank) for n in ranked)


def _size(context: Context, value: Value, dimension: int) -> str:
    axis = dimension % value.rank
    return context.op("Shape", value.name, start=axis, end=axis + 1)
