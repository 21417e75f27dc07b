"""Operators that ONNX has in one piece and ATen in several, for decompositions to be written in.

They run under torch like any other, so what is written in them is tested against torch's kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("headwater", "FRAGMENT")  # type: ignore[no-untyped-call]


def _operator(schema: str, shape: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a function as what `schema` does, and `shape` as what it does to fake tensors."""
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    name = "headwater::" + schema.partition("(")[0]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.impl(name, "CompositeExplicitAutograd", function, lib=_LIBRARY)
        torch.library.register_fake(name, shape, lib=_LIBRARY)
        return function

    return register


def _padded_shape(features: Tensor, before: list[int], after: list[int]) -> Tensor:
    lead = features.dim() - len(before)
    sizes = zip(features.shape[lead:], before, after, strict=True)
    return features.new_empty([*features.shape[:lead], *(n + b + a for n, b, a in sizes)])


@_operator("padded(Tensor features, int[] before, int[] after) -> Tensor", _padded_shape)
def padded(features: Tensor, before: list[int], after: list[int]) -> Tensor:
    """Zeros around the last dimensions: constant_pad_nd, which fixes a symbolic batch."""
    pairs = zip(reversed(before), reversed(after), strict=True)
    return torch.nn.functional.pad(features, [amount for pair in pairs for amount in pair])


def _affine_shape(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return features.new_empty(features.shape)


@_operator("affine(Tensor features, Tensor scale, Tensor shift) -> Tensor", _affine_shape)
def affine(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`features * scale + shift` by channel: features [batch, channel, ...], the others [channel].

    onnxruntime does it in one pass over memory, where a product and a sum take two.
    """
    shape = [1, -1] + [1] * (features.dim() - 2)
    return features * scale.reshape(shape) + shift.reshape(shape)


def _standardized_shape(
    features: Tensor, scale: Tensor, shift: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    channels = features.shape[1]
    return (
        features.new_empty(features.shape),
        features.new_empty([channels]),
        features.new_empty([channels]),
    )


@_operator(
    "standardized(Tensor features, Tensor scale, Tensor shift, float epsilon)"
    " -> (Tensor, Tensor, Tensor)",
    _standardized_shape,
)
def standardized(
    features: Tensor, scale: Tensor, shift: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel with mean 0 and variance 1, then `affine`; with the mean and the variance."""
    others = [0, *range(2, features.dim())]
    variance, mean = torch.var_mean(features, others, correction=0)
    slope = scale * torch.rsqrt(variance + epsilon)
    return affine(features, slope, shift - mean * slope), mean, variance
