"""Gradients of convolutions as convolutions and matrix products.

Where several forms are equal, the one was chosen that onnxruntime's CPU kernels run fastest.
"""

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_SMALL_PATCH_ELEMENTS = 2**16
"""Per example. Up to here one product of gathered patches is fastest; above, one for each tap."""
_MANY_TAPS = 64

_LIBRARY = torch.library.Library("headwater", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("padded(Tensor features, int[] amounts) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_LIBRARY, "padded", "CompositeExplicitAutograd")
def _padded(features: Tensor, amounts: list[int]) -> Tensor:
    """Zeros on both sides of the last dimensions: constant_pad_nd, which fixes a symbolic batch."""
    return torch.nn.functional.pad(features, [a for a in reversed(amounts) for _ in (0, 1)])


@torch.library.register_fake("headwater::padded")  # type: ignore[untyped-decorator]
def _padded_shape(features: Tensor, amounts: list[int]) -> Tensor:
    lead = features.dim() - len(amounts)
    sizes = zip(features.shape[lead:], amounts, strict=True)
    return features.new_empty([*features.shape[:lead], *(size + 2 * a for size, a in sizes)])


def convolution_backward(
    gradient: Tensor, features: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of a convolution as convolutions and matrix products."""
    dimensions = features.dim() - 2
    stride, padding, dilation = (spread(value, dimensions) for value in (stride, padding, dilation))
    to_features = to_weight = to_bias = None
    if output_mask[0]:
        shared = (gradient, weight, None, stride, padding, dilation)
        if transposed:
            to_features = aten.convolution(*shared, False, [0] * dimensions, groups)
            for axis in range(2, dimensions + 2):
                to_features = aten.slice(to_features, axis, 0, features.shape[axis])
        else:
            extra = [
                int(features.shape[axis + 2]) + 2 * padding[axis] - 1
                - (int(gradient.shape[axis + 2]) - 1) * stride[axis]
                - dilation[axis] * (int(weight.shape[axis + 2]) - 1)
                for axis in range(dimensions)
            ]  # fmt: skip
            to_features = aten.convolution(*shared, True, extra, groups)
    if output_mask[1]:
        wide, narrow = (gradient, features) if transposed else (features, gradient)
        window = [int(size) for size in weight.shape[2:]]
        to_weight = _weight_gradient(wide, narrow, window, stride, padding, dilation, groups)
    if output_mask[2]:
        to_bias = gradient.sum([0, *range(2, dimensions + 2)])
    return to_features, to_weight, to_bias


def _weight_gradient(
    wide: Tensor, narrow: Tensor, window: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """`w[o, i, tap] = sum over examples and positions of narrow[o] * wide[i] shifted by tap`."""
    taps = list(itertools.product(*map(range, window)))
    rows, columns = int(narrow.shape[1]), int(wide.shape[1]) // groups
    positions = prod(int(size) for size in narrow.shape[2:])
    if len(taps) > _MANY_TAPS:
        return _weight_gradient_as_convolution(
            wide, narrow, window, stride, padding, dilation, groups
        )
    if any(padding):
        wide = torch.ops.headwater.padded(wide, padding)
    lead = [wide.shape[0]] if groups == 1 else [wide.shape[0], groups]
    patches = [
        _shifted(wide, tap, narrow, stride, dilation).reshape(*lead, columns, positions)
        for tap in taps
    ]
    # the narrow side is the small one: transpose it, not the patches
    right = narrow.reshape(*lead, rows // groups, positions).transpose(-1, -2)
    if int(wide.shape[1]) * len(taps) * positions <= _SMALL_PATCH_ELEMENTS:
        found = torch.matmul(torch.cat(patches, -2), right).sum(0)
    else:
        found = torch.cat([torch.matmul(patch, right).sum(0) for patch in patches], -2)
    found = found.reshape(groups, len(taps), columns, rows // groups).permute(0, 3, 2, 1)
    return found.reshape(rows, columns, *window)


def _shifted(
    wide: Tensor, tap: tuple[int, ...], narrow: Tensor, stride: list[int], dilation: list[int]
) -> Tensor:
    """What one tap of the window sees at every output position."""
    for axis, offset in enumerate(tap):
        start = offset * dilation[axis]
        end = start + (int(narrow.shape[axis + 2]) - 1) * stride[axis] + 1
        wide = aten.slice(wide, axis + 2, start, end, stride[axis])
    return wide


def _weight_gradient_as_convolution(
    wide: Tensor, narrow: Tensor, window: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Examples and channels trade places, stride and dilation too: for large windows.

    Each group's channels stay together: examples become the channels of its group.
    """
    columns = int(wide.shape[1]) // groups
    apart = wide.reshape(wide.shape[0], groups, columns, *wide.shape[2:]).transpose(0, 2)
    found = aten.convolution(
        apart.reshape(columns, groups * wide.shape[0], *wide.shape[2:]), narrow.transpose(0, 1),
        None, dilation, padding, stride, False, [0] * len(window), groups,
    )  # fmt: skip
    for axis, size in enumerate(window):
        found = aten.slice(found, axis + 2, 0, size)
    turned: Tensor = found.transpose(0, 1)
    return turned


def spread(value: Sequence[int], dimensions: int) -> list[int]:
    """One number for each dimension; torch allows one for all."""
    return list(value) * dimensions if len(value) == 1 else list(value)


CONVOLUTION_GRADIENTS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
}
