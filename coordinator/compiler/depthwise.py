"""Depthwise convolutions over few positions, as one matrix product for each channel.

A channel's window is spread out into a matrix from all input to all output positions (a Toeplitz
matrix). onnxruntime's convolution works through channels one image after the other, which for maps
of few positions takes two to seven times as long. Graphs for prediction keep the convolution, since
onnxruntime has a kernel of its own where weights are constants.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_MOST_ELEMENTS = 2500
"""Of a channel's matrix; beyond that a convolution is faster."""


def small_convolution(
    features: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int,
) -> Any:  # fmt: skip
    """The decomposition of a convolution that is small and depthwise; others are left alone."""
    if transposed or not _is_depthwise(features, weight, groups):
        return NotImplemented
    shape = _outputs(features, weight, stride, padding, dilation)
    if not is_small_depthwise(features, weight, shape, groups):
        return NotImplemented
    spread = _spread(features, weight, shape, stride, padding, dilation)
    channels = int(features.shape[1])
    matrices = _matrices(weight, spread)
    found = torch.bmm(features.flatten(2).transpose(0, 1), matrices).transpose(0, 1).contiguous()
    found = found.reshape(-1, channels, *shape)
    return found if bias is None else found + bias.reshape(1, channels, *[1] * len(shape))


def small_gradients(
    gradient: Tensor, features: Tensor, weight: Tensor, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of features and weight of such a convolution."""
    shape = [int(size) for size in gradient.shape[2:]]
    spread = _spread(features, weight, shape, stride, padding, dilation)
    by_channel = gradient.flatten(2).transpose(0, 1)
    to_features = to_weight = None
    if output_mask[0]:
        # not the forward pass's matrices turned: those would be kept in memory until here
        matrices = _matrices(weight, spread.transpose(1, 2))
        to_features = torch.bmm(by_channel, matrices).transpose(0, 1).contiguous()
        to_features = to_features.reshape(-1, *(int(size) for size in features.shape[1:]))
    if output_mask[1]:
        pairs = torch.bmm(features.flatten(2).permute(1, 2, 0), by_channel)
        to_weight = torch.mm(pairs.flatten(1), spread.flatten(1).t()).reshape(weight.shape)
    return to_features, to_weight


def is_small_depthwise(
    features: Tensor, weight: Tensor, outputs: Sequence[int], groups: int
) -> bool:
    """Whether each channel has a window of its own, and few enough positions."""
    if not _is_depthwise(features, weight, groups):
        return False
    inputs = [int(size) for size in features.shape[2:]]
    return prod(inputs) * prod(outputs) <= _MOST_ELEMENTS


def _is_depthwise(features: Tensor, weight: Tensor, groups: int) -> bool:
    """The sizes must be known: where a gradient trades places, a channel is of an example."""
    known = all(isinstance(size, int) for size in (*features.shape[1:], *weight.shape))
    return known and 1 < groups == features.shape[1] == weight.shape[0]


def _outputs(
    features: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    """The sizes of the output's axes."""
    return [
        (int(features.shape[axis + 2]) + 2 * pad - reach * (int(weight.shape[axis + 2]) - 1) - 1)
        // step + 1
        for axis, (step, pad, reach) in enumerate(zip(stride, padding, dilation, strict=True))
    ]  # fmt: skip


def _matrices(weight: Tensor, spread: Tensor) -> Tensor:
    """[channel, input position, output position]"""
    taps, inputs, outputs = (int(size) for size in spread.shape)
    flat = torch.mm(weight.reshape(-1, taps), spread.reshape(taps, -1))
    return flat.reshape(-1, inputs, outputs)


def _spread(
    features: Tensor, weight: Tensor, outputs: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """[tap, input position, output position]: 1 where the tap joins the two."""
    spread = weight.new_ones((1, 1, 1))
    for axis, count in enumerate(outputs):
        size, taps = int(features.shape[axis + 2]), int(weight.shape[axis + 2])
        tap = torch.arange(taps, device=weight.device).reshape(-1, 1, 1) * dilation[axis]
        start = torch.arange(count, device=weight.device) * stride[axis] - padding[axis]
        place = torch.arange(size, device=weight.device).reshape(1, -1, 1)
        joins = (place == start + tap).to(weight.dtype)
        both = spread[:, None, :, None, :, None] * joins[None, :, None, :, None, :]
        spread = both.flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return spread
