"""Gradients of convolutions as convolutions and matrix products.

Where several forms are equal, the one was chosen that onnxruntime's CPU kernels run fastest
(measured on one thread against torch's own kernel; `benchmarks/plan` shows whole models).
"""

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

import coordinator.compiler.portable_operators  # noqa: F401 - defines torch.ops.headwater
from coordinator.compiler.depthwise import is_small_depthwise, small_gradients

aten = torch.ops.aten

_MANY_TAPS = 64
_LEAST_ROWS = 16
"""Of a matrix product: below that, most of its time goes into packing the other operand."""
_LARGE_WEIGHT = 400_000
"""Elements of a weight that ConvTranspose, which packs it once for each example, is slow with."""

Grid = list[int]


def convolution_backward(
    gradient: Tensor, features: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of a convolution as convolutions and matrix products."""
    dimensions = features.dim() - 2
    stride, padding, dilation = (spread(value, dimensions) for value in (stride, padding, dilation))
    to_features = to_weight = to_bias = None
    positions = [int(size) for size in gradient.shape[2:]]
    if not transposed and is_small_depthwise(features, weight, positions, groups):
        to_features, to_weight = small_gradients(
            gradient, features, weight, stride, padding, dilation, output_mask
        )
        output_mask = [False, False, output_mask[2]]
    if output_mask[0]:
        shared = (gradient, weight, None, stride, padding, dilation)
        if transposed:
            to_features = aten.convolution(*shared, False, [0] * dimensions, groups)
            for axis in range(2, dimensions + 2):
                to_features = aten.slice(to_features, axis, 0, features.shape[axis])
        elif _is_faster_turned(weight, stride, padding, dilation, groups):
            to_features = _turned_convolution(gradient, weight, padding, dilation)
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


def _is_faster_turned(
    weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> bool:
    """Whether a convolution of the gradient takes less time than a transposed one.

    The one unfolds the gradient's channels before its matrix product, the other folds those of the
    features behind it: fewer are better, and a window of one point needs no unfolding at all.
    """
    outputs, inputs, *window = (int(size) for size in weight.shape)
    reach = [step * (size - 1) for step, size in zip(dilation, window, strict=True)]
    fits = all(pad <= most for pad, most in zip(padding, reach, strict=True))
    is_fast = prod(window) == 1 or inputs > outputs or weight.numel() >= _LARGE_WEIGHT
    return max(stride) == 1 and groups == 1 and fits and is_fast


def _turned_convolution(
    gradient: Tensor, weight: Tensor, padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient of the features, where the window moves by one: each tap on the other side."""
    outputs, inputs, *window = (int(size) for size in weight.shape)
    taps = weight.flatten(2).transpose(0, 1)
    if prod(window) > 1:
        backwards = torch.arange(prod(window) - 1, -1, -1, device=weight.device)
        taps = taps.index_select(2, backwards)
    around = [
        step * (size - 1) - pad for step, size, pad in zip(dilation, window, padding, strict=True)
    ]
    ones, zeros = [1] * len(window), [0] * len(window)
    found: Tensor = aten.convolution(
        gradient, taps.reshape(inputs, outputs, *window), None,
        ones, around, dilation, False, zeros, 1,
    )  # fmt: skip
    return found


def _weight_gradient(
    wide: Tensor, narrow: Tensor, window: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """`w[o, i, tap] = sum over examples and positions of narrow[o] * wide[i] shifted by tap`."""
    shape = window, stride, padding, dilation
    if prod(window) == 1 and not any(padding) and groups == 1:
        return _weight_gradient_of_points(wide, narrow, stride)
    depthwise = groups == int(wide.shape[1]) and max(stride) > 1
    if prod(window) > _MANY_TAPS or depthwise:
        return _weight_gradient_as_convolution(wide, narrow, *shape, groups)
    return _weight_gradient_by_taps(wide, narrow, *shape, groups)


def _weight_gradient_of_points(wide: Tensor, narrow: Tensor, stride: list[int]) -> Tensor:
    """A window of one point: a product for each example, added up."""
    for axis, step in enumerate(stride):
        end = step * (int(narrow.shape[axis + 2]) - 1) + 1
        wide = aten.slice(wide, axis + 2, 0, end, step)
    left, right = narrow.flatten(2), wide.flatten(2).transpose(1, 2)
    found: Tensor = torch.bmm(left, right).sum(0)
    return found.reshape(*found.shape, *[1] * len(stride))


def _weight_gradient_by_taps(
    wide: Tensor, narrow: Tensor, window: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Matrix products for a tap or some, over the positions of all examples in one row.

    Both sides lie in grids of the same size in which zeros part the rows of an image and the
    images: there a tap is a shift of the whole row, which is one copy of contiguous memory.
    """
    rows, columns = int(narrow.shape[1]), int(wide.shape[1]) // groups
    outputs = [int(size) for size in narrow.shape[2:]]
    wide, grid, shift = _in_grid(wide, outputs, window, stride, padding, dilation)
    places = [
        _place(tap, grid, stride, shift, dilation) for tap in itertools.product(*map(range, window))
    ]
    before = -min(0, *(offset for _, offset in places))
    after = max(0, *(offset for _, offset in places))
    phases = {phase: _phase(wide, phase, stride, before, after) for phase, _ in places}
    right = _padded_to(narrow, grid).transpose(0, 1)
    shifted = [
        phases[phase][:, before + offset : offset - after if offset < after else None]
        for phase, offset in places
    ]
    if groups == 1:
        right = right.reshape(rows, -1).t()
        together = max(1, _LEAST_ROWS // columns)
        found = [torch.mm(torch.cat(shifted[first : first + together]), right)
                 for first in range(0, len(shifted), together)]  # fmt: skip
        taps = torch.cat(found)
    else:
        right = right.reshape(groups, rows // groups, -1).transpose(1, 2)
        taps = torch.stack([torch.bmm(one.reshape(groups, columns, -1), right) for one in shifted])
    taps = taps.reshape(len(places), groups, columns, rows // groups)
    return taps.permute(1, 3, 2, 0).reshape(rows, columns, *window)


def _in_grid(
    wide: Tensor, outputs: list[int], window: list[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Grid, list[int]]:  # fmt: skip
    """The features padded to whole phases, a phase's size, and where the first tap looks.

    Without strides the zeros between rows serve as padding of both.
    """
    axes = range(len(window))
    sizes = [int(size) for size in wide.shape[2:]]
    if max(stride) == 1:
        grid = [max(sizes[a] + padding[a], outputs[a]) for a in axes]
        return _padded_to(wide, grid), grid, [-pad for pad in padding]
    reach = [dilation[a] * (window[a] - 1) + stride[a] * (outputs[a] - 1) + 1 for a in axes]
    grid = [-(-reach[a] // stride[a]) for a in axes]
    whole = [grid[a] * stride[a] for a in axes]
    for axis in axes:
        kept = min(sizes[axis], whole[axis] - padding[axis])
        wide = aten.slice(wide, axis + 2, 0, kept)
    if any(padding):
        wide = torch.ops.headwater.padded(wide, padding, [0] * len(window))
    return _padded_to(wide, whole), grid, [0] * len(window)


def _padded_to(features: Tensor, sizes: list[int]) -> Tensor:
    """Zeros behind the end of each axis."""
    ends = [size - int(old) for size, old in zip(sizes, features.shape[2:], strict=True)]
    if not any(ends):
        return features
    padded: Tensor = torch.ops.headwater.padded(features, [0] * len(sizes), ends)
    return padded


def _place(
    tap: tuple[int, ...], grid: Grid, stride: list[int], shift: list[int], dilation: list[int]
) -> tuple[tuple[int, ...], int]:
    """A tap's phase, and its distance along the row from the output position that it is for."""
    offset = 0
    starts = [index * dilation[axis] + shift[axis] for axis, index in enumerate(tap)]
    for axis, start in enumerate(starts):
        offset = offset * grid[axis] + start // stride[axis]
    return tuple(start % stride[axis] for axis, start in enumerate(starts)), offset


def _phase(
    wide: Tensor, phase: tuple[int, ...], stride: list[int], before: int, after: int
) -> Tensor:
    """Every so many positions, as [channel, example and position], with zeros around each row."""
    for axis, (first, step) in enumerate(zip(phase, stride, strict=True)):
        if step > 1:
            wide = aten.slice(wide, axis + 2, first, wide.shape[axis + 2], step)
    row = wide.transpose(0, 1).reshape(int(wide.shape[1]), -1)
    if not before and not after:
        return row
    padded: Tensor = torch.ops.headwater.padded(row, [before], [after])
    return padded


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
