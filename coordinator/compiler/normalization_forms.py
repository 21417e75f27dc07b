"""Batch and group normalization, forward and backward, in as few passes over memory as there are.

What is computed by channel is folded before it meets the features: a pass costs as much as a
convolution of few channels. Instance normalization is a batch normalization of one example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import coordinator.compiler.portable_operators  # noqa: F401 - defines torch.ops.headwater

aten = torch.ops.aten
headwater = torch.ops.headwater


def batch_norm_of_batch(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Ioffe, Szegedy, "Batch Normalization", ICML 2015: output, mean, reciprocal deviation."""
    output, mean, _, scale = _standardized(features, weight, bias, epsilon)
    return output, mean, scale


def batch_norm(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor,
    running_variance: Tensor, training: bool, momentum: float, epsilon: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The same, followed by the new running mean and running (unbiased) variance."""
    if not training:
        output, mean, scale = batch_norm_of_statistics(
            features, weight, bias, running_mean, running_variance, momentum, epsilon
        )
        return output, mean, scale, running_mean, running_variance
    output, mean, variance, scale = _standardized(features, weight, bias, epsilon)
    count = features.numel() / features.shape[1]
    unbiased = variance * (count / (count - 1))
    return (
        output, mean, scale,
        momentum * mean + (1 - momentum) * running_mean,
        momentum * unbiased + (1 - momentum) * running_variance,
    )  # fmt: skip


def batch_norm_of_statistics(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor,
    running_variance: Tensor, momentum: float, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """With the running statistics, as in evaluation; the batch's own are empty."""
    slope = torch.rsqrt(running_variance + epsilon)
    slope = slope if weight is None else slope * weight
    shift = -running_mean * slope
    output = headwater.affine(features, slope, shift if bias is None else shift + bias)
    return output, features.new_zeros((0,)), features.new_zeros((0,))


def batch_norm_backward(
    gradient: Tensor, features: Tensor, weight: Tensor | None, running_mean: Tensor | None,
    running_variance: Tensor | None, saved_mean: Tensor | None, saved_scale: Tensor | None,
    training: bool, epsilon: float, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """`saved_scale` is the reciprocal standard deviation.

    The features are centred before they are summed: a difference of sums would cancel.
    """
    others = [0, *range(2, features.dim())]
    shape = [1, -1] + [1] * (features.dim() - 2)
    if training:
        assert saved_mean is not None and saved_scale is not None
        mean, scale = saved_mean, saved_scale
    else:
        assert running_mean is not None and running_variance is not None
        mean, scale = running_mean, torch.rsqrt(running_variance + epsilon)
    centred = features - mean.reshape(shape)
    to_bias = gradient.sum(others)
    along = (gradient * centred).sum(others)
    slope = scale if weight is None else scale * weight
    to_features = None
    if output_mask[0]:
        to_features = gradient * slope.reshape(shape)
        if training:
            count = features.numel() / features.shape[1]
            bend = slope * scale * scale * (along / -count)
            to_features = to_features + headwater.affine(centred, bend, slope * (to_bias / -count))
    return (
        to_features,
        along * scale if output_mask[1] else None,
        to_bias if output_mask[2] else None,
    )


def group_norm(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int,
    positions: int, groups: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Wu, He, "Group Normalization", ECCV 2018: output, mean and scale [batch, group].

    Each group of each example is standardized as a channel of one example.
    """
    grouped = features.reshape(1, -1, channels // groups * positions)
    output, mean, _, scale = _standardized(grouped, None, None, epsilon)
    output = output.reshape(features.shape)
    if weight is not None or bias is not None:
        ones, zeros = features.new_ones((channels,)), features.new_zeros((channels,))
        output = headwater.affine(
            output, ones if weight is None else weight, zeros if bias is None else bias
        )
    return output, mean.reshape(-1, groups), scale.reshape(-1, groups)


def group_norm_backward(
    gradient: Tensor, features: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None,
    batch: int, channels: int, positions: int, groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """`scale` [batch, group] is the reciprocal standard deviation."""
    width = channels // groups
    split = (-1, groups, width)
    along = (gradient * features).reshape(-1, channels, positions).sum(2).reshape(split)
    total = gradient.reshape(-1, channels, positions).sum(2).reshape(split)
    to_features = None
    if output_mask[0]:
        slope = scale.unsqueeze(2).expand(-1, groups, width)
        weighted, weighted_total = along, total
        if weight is not None:
            by_group = weight.reshape(1, groups, width)
            slope = scale.unsqueeze(2) * by_group
            weighted, weighted_total = along * by_group, total * by_group
        weighted, weighted_total = weighted.sum(2), weighted_total.sum(2)
        share = 1.0 / (width * positions)
        bend = (weighted_total * mean - weighted) * scale * scale * scale * share
        shift = -(bend * mean) - weighted_total * scale * share
        bent = headwater.affine(
            features.reshape(1, -1, width * positions), bend.reshape(-1), shift.reshape(-1)
        )
        straight = gradient.reshape(-1, channels, positions) * slope.reshape(-1, channels, 1)
        to_features = straight.reshape(features.shape) + bent.reshape(features.shape)
    to_weight = ((along - total * mean.unsqueeze(2)) * scale.unsqueeze(2)).sum(0)
    return (
        to_features,
        to_weight.reshape(channels) if output_mask[1] else None,
        total.sum(0).reshape(channels) if output_mask[2] else None,
    )


def _standardized(
    features: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, mean, variance, reciprocal standard deviation."""
    channels = [features.shape[1]]
    scale = features.new_ones(channels) if weight is None else weight
    shift = features.new_zeros(channels) if bias is None else bias
    output, mean, variance = headwater.standardized(features, scale, shift, epsilon)
    return output, mean, variance, torch.rsqrt(variance + epsilon)


NORMALIZATION_FORMS: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit.no_stats: batch_norm_of_batch,
    aten._native_batch_norm_legit_functional.default: batch_norm,
    aten._native_batch_norm_legit_no_training.default: batch_norm_of_statistics,
    aten.native_batch_norm_backward.default: batch_norm_backward,
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
}
