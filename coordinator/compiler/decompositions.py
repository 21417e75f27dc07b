"""Backward operators spelled out in ATen operators that have a counterpart in ONNX.

They run under torch like any function, so each is tested against the kernel that it replaces.
Where several forms are equal, the one was chosen that onnxruntime's CPU kernels run fastest.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from coordinator.compiler.convolution_gradients import CONVOLUTION_GRADIENTS
from coordinator.compiler.counter_random import RANDOM
from coordinator.compiler.depthwise import small_convolution
from coordinator.compiler.normalization_forms import NORMALIZATION_FORMS
from coordinator.compiler.pooling_forms import POOLING_FORMS

aten = torch.ops.aten

_STOCK = """
gelu_backward silu silu_backward hardswish
hardsigmoid_backward leaky_relu elu elu_backward softplus softplus_backward
mish mish_backward sigmoid_backward tanh_backward log_sigmoid_forward log_sigmoid_backward
glu_backward _prelu_kernel _prelu_kernel_backward _softmax_backward_data
_log_softmax_backward_data native_layer_norm native_layer_norm_backward mse_loss mse_loss_backward
smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward
binary_cross_entropy binary_cross_entropy_backward soft_margin_loss soft_margin_loss_backward
nll_loss_forward nll_loss2d_forward nll_loss2d_backward select_backward slice_backward
diagonal_backward unfold_backward addcmul addcdiv masked_fill rsub linalg_vector_norm
reflection_pad2d_backward replication_pad2d_backward im2col_backward
max_unpool2d max_unpool3d
""".split()  # noqa: SIM905 - a table reads better as words

_KEPT = """
relu addmm _softmax _log_softmax floor_divide threshold_backward split split_with_sizes
max_pool2d_with_indices max_pool2d_with_indices_backward max_pool3d_with_indices
max_pool3d_with_indices_backward
""".split()  # noqa: SIM905 - a table reads better as words
"""Lowered directly. The stock decomposition of floor_divide goes through floating division."""


def training_table() -> dict[Any, Callable[..., Any]]:
    """`table`, with forms that are faster where weights are inputs, as they are in training."""
    return {**table(), aten.convolution.default: small_convolution}


@cache
def table() -> dict[Any, Callable[..., Any]]:
    """Decompositions by operator: torch's own, then ours."""
    from torch._decomp import core_aten_decompositions, get_decompositions

    chosen: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions().items())  # type: ignore[no-untyped-call]
    stock = [getattr(aten, name) for name in _STOCK if hasattr(aten, name)]
    chosen.update(get_decompositions(stock))
    for name in _KEPT:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            chosen.pop(getattr(packet, overload), None)
    chosen.update(_OURS)
    return chosen


def embedding_dense_backward(
    gradient: Tensor, indices: Tensor, rows: int, padding_index: int, scale_by_frequency: bool
) -> Tensor:
    """Rows added up where their index says."""
    width = gradient.shape[-1]
    flat, values = indices.reshape(-1), gradient.reshape(-1, width)
    if scale_by_frequency:
        ones = torch.ones_like(flat).to(values.dtype)
        counts = torch.zeros(rows, dtype=values.dtype, device=values.device)
        counts = aten.index_put(counts, [flat], ones, True)
        values = values / counts[flat].unsqueeze(1)
    if padding_index >= 0:
        values = values * (flat != padding_index).unsqueeze(1).to(values.dtype)
    zeros = torch.zeros((rows, int(width)), dtype=values.dtype, device=values.device)
    found: Tensor = aten.index_put(zeros, [flat], values, True)
    return found


def between(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """lerp, from the nearer end, as torch's kernel computes it."""
    if abs(weight) < 0.5:
        return start + weight * (end - start)
    return end - (end - start) * (1 - weight)


def added_product(start: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    """addcmul, without a product with 1."""
    return start + (left * right if value == 1 else value * (left * right))


def running_product(values: Tensor, dimension: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """cumprod in log2(size) products: Hillis, Steele, "Data parallel algorithms", CACM, 1986."""
    return _running(torch.mul, values if dtype is None else values.to(dtype), dimension)


def running_log_sum(values: Tensor, dimension: int) -> Tensor:
    """logcumsumexp, likewise."""
    return _running(_log_of_sum, values, dimension)


def _running(join: Callable[[Tensor, Tensor], Tensor], values: Tensor, dimension: int) -> Tensor:
    size, shift = int(values.shape[dimension]) if values.dim() else 1, 1
    while shift < size:
        head = values.narrow(dimension, 0, shift)
        earlier = values.narrow(dimension, 0, size - shift)
        later = values.narrow(dimension, shift, size - shift)
        values = torch.cat([head, join(earlier, later)], dimension)
        shift *= 2
    return values


def _log_of_sum(left: Tensor, right: Tensor) -> Tensor:
    larger = torch.maximum(left, right)
    gap = torch.minimum(left, right) - larger
    gap = torch.where(larger == -torch.inf, 0.0, gap)  # two of them have no difference
    return larger + gap.exp().log1p()


def length_of_legs(left: Tensor, right: Tensor) -> Tensor:
    """hypot."""
    return (left * left + right * right).sqrt()


def larger_number(left: Tensor, right: Tensor) -> Tensor:
    """fmax: the other where one is not a number."""
    return _number_of(torch.maximum, left, right)


def smaller_number(left: Tensor, right: Tensor) -> Tensor:
    """fmin."""
    return _number_of(torch.minimum, left, right)


def _number_of(choose: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    return torch.where(left.isnan(), right, torch.where(right.isnan(), left, choose(left, right)))


def with_sign_of(values: Tensor, signs: Tensor) -> Tensor:
    """copysign; the sign of -0 counts as positive."""
    return values.abs() * (1 - 2 * (signs < 0).to(values.dtype))


def nll_loss_backward(
    gradient: Tensor, log_probabilities: Tensor, target: Tensor, weight: Tensor | None,
    reduction: int, ignore_index: int, total_weight: Tensor,
) -> Tensor:  # fmt: skip
    """Dense: comparison with all classes and a product, since a scatter runs serially."""
    if log_probabilities.dim() == 1:
        log_probabilities, target = log_probabilities.unsqueeze(0), target.reshape(1)
        return nll_loss_backward(
            gradient, log_probabilities, target, weight, reduction, ignore_index, total_weight
        ).squeeze(0)
    classes = torch.arange(log_probabilities.shape[1], device=target.device)
    hit = (target.unsqueeze(1) == classes) & (target != ignore_index).unsqueeze(1)
    found = hit.to(log_probabilities.dtype)
    if weight is not None:
        found = found * weight
    if reduction == 1:
        # all may be ignored
        gradient = gradient / torch.where(total_weight == 0, 1.0, total_weight)
    return found * (-gradient.unsqueeze(1) if gradient.dim() else -gradient)


def hardtanh_backward(gradient: Tensor, features: Tensor, low: float, high: float) -> Tensor:
    """A product with a mask: onnxruntime's Where is slow."""
    return gradient * ((features > low) & (features < high)).to(gradient.dtype)


def leaky_relu_backward(
    gradient: Tensor, features: Tensor, slope: float, of_result: bool
) -> Tensor:
    """The slope, and the rest of 1 where the input is positive."""
    return gradient * ((features > 0).to(gradient.dtype) * (1 - slope) + slope)


def hardswish_backward(gradient: Tensor, features: Tensor) -> Tensor:
    """Howard et al., "Searching for MobileNetV3", ICCV 2019: x/3 + 1/2 from -3 to 3, then 1."""
    between = ((features > -3) & (features < 3)).to(gradient.dtype)
    return gradient * (between * (features / 3 + 0.5) + (features >= 3).to(gradient.dtype))


_OURS: dict[Any, Callable[..., Any]] = {
    **RANDOM,
    aten.embedding_dense_backward.default: embedding_dense_backward,
    aten.hardtanh_backward.default: hardtanh_backward,
    aten.hardswish_backward.default: hardswish_backward,
    aten.leaky_relu_backward.default: leaky_relu_backward,
    aten.lerp.Scalar: between,
    aten.addcmul.default: added_product,
    aten.cumprod.default: running_product,
    aten.logcumsumexp.default: running_log_sum,
    aten.hypot.default: length_of_legs,
    aten.fmax.default: larger_number,
    aten.fmin.default: smaller_number,
    aten.copysign.Tensor: with_sign_of,
    aten.nll_loss_backward.default: nll_loss_backward,
    **CONVOLUTION_GRADIENTS,
    **POOLING_FORMS,
    **NORMALIZATION_FORMS,
}
