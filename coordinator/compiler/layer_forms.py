"""Forms of layers whose own Python reads a value or whose kernels fix the batch while traced."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm

from headwater.errors import CompileError

_BATCH_NORM_FORWARD = _BatchNorm.forward


def batch_norm_forward(layer: _BatchNorm, features: Tensor) -> Tensor:
    """BatchNorm in training, for batches of any size.

    A last batch of one example that has one value for each channel has no variance: torch refuses
    it, devices leave the running variance as it was.
    """
    before = layer.running_var
    if not (layer.training and isinstance(features, FakeTensor) and before is not None):
        return _BATCH_NORM_FORWARD(layer, features)
    forward = _averaged_batch_norm if layer.momentum is None else _BATCH_NORM_FORWARD
    if prod(features.shape[2:]) > 1:
        return forward(layer, features)
    before = before.clone()
    found = forward(layer, features)
    after = layer.running_var
    assert after is not None
    layer.running_var = torch.where(after.isnan(), before, after)
    return found


def _averaged_batch_norm(layer: _BatchNorm, features: Tensor) -> Tensor:
    """BatchNorm with `momentum=None`, whose own code takes the count of batches out of the graph.

    Running statistics are the mean over all batches seen. A pass with momentum 1 leaves the
    batch's own statistics in fresh buffers, so the native kernel is still the one that runs.
    """
    layer._check_input_dim(features)  # type: ignore[no-untyped-call]
    count, mean, variance = layer.num_batches_tracked, layer.running_mean, layer.running_var
    assert count is not None and mean is not None and variance is not None
    count.add_(1)
    of_batch = torch.zeros_like(mean), torch.zeros_like(variance)
    found = F.batch_norm(features, *of_batch, layer.weight, layer.bias, True, 1.0, layer.eps)
    share = 1.0 / count.to(mean.dtype)
    mean.mul_(1 - share).add_(share * of_batch[0])
    variance.mul_(1 - share).add_(share * of_batch[1])
    return found


def fractional_max_pool(*_: Any, **__: Any) -> Tensor:
    """Refused: torch's kernel fixes the batch size through the numbers that it draws."""
    raise CompileError(
        "fractional max-pooling is not supported: use max_pool2d with a stride, or "
        "adaptive_max_pool2d"
    )


def local_response_norm(
    features: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural
    networks", NeurIPS 2012, section 3.3; as torch, with the mean over the window for the sum.
    """
    square = features * features
    edges = [torch.zeros_like(square[:, :1])]
    wide = torch.cat([*edges * (size // 2), square, *edges * ((size - 1) // 2)], 1)
    channels = int(features.shape[1])
    total = wide[:, :channels]
    for offset in range(1, size):
        total = total + wide[:, offset : offset + channels]
    return features / (total * (alpha / size) + k).pow(beta)


def same_convolution(
    function: Callable[..., Tensor], pad: Callable[[Tensor, Sequence[int]], Tensor],
    features: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Padding "same" where it is odd: torch pads the end by one more, by a kernel of its own."""
    if padding != "same":
        return function(features, weight, bias, stride, padding, dilation, groups)
    count = weight.dim() - 2
    steps = [dilation] * count if isinstance(dilation, int) else list(dilation)
    totals = [d * (int(k) - 1) for d, k in zip(steps, weight.shape[2:], strict=True)]
    odd = [total % 2 for total in totals]
    if any(odd):
        features = pad(features, [side for o in reversed(odd) for side in (0, o)])
    return function(features, weight, bias, stride, [t // 2 for t in totals], dilation, groups)
