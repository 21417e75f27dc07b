"""Gradients of normalizations, with the work per channel folded first."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def native_batch_norm_backward(
    gradient: Tensor, features: Tensor, weight: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, saved_mean: Tensor | None, saved_deviation: Tensor | None,
    training: bool, epsilon: float, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Ioffe, Szegedy, "Batch Normalization", ICML 2015, with the work per channel folded first.

    `saved_deviation` is the reciprocal standard deviation.
    """
    others = [0, *range(2, features.dim())]
    shape = [1, -1] + [1] * (features.dim() - 2)
    if training:
        assert saved_mean is not None and saved_deviation is not None
        mean, scale = saved_mean, saved_deviation
    else:
        assert running_mean is not None and running_var is not None
        mean, scale = running_mean, torch.rsqrt(running_var + epsilon)
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
            shift = slope * (to_bias / -count)
            to_features = to_features + (centred * bend.reshape(shape) + shift.reshape(shape))
    return (
        to_features,
        along * scale if output_mask[1] else None,
        to_bias if output_mask[2] else None,
    )


NORMALIZATION_GRADIENTS: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm_backward.default: native_batch_norm_backward,
}
