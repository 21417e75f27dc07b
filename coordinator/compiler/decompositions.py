"""Backward operators spelled out in ATen operators that have a counterpart in ONNX.

They run under torch like any function, so each is tested against the kernel that it replaces.
Where several forms are equal, the one was chosen that onnxruntime's CPU kernels run fastest.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from headwater.errors import CompileError

aten = torch.ops.aten

_SMALL_PATCH_ELEMENTS = 2**16
"""Per example. Up to here one product of gathered patches is fastest; above, one for each tap."""
_MANY_TAPS = 64

_STOCK = """
gelu_backward silu silu_backward hardtanh_backward hardswish hardswish_backward
hardsigmoid_backward leaky_relu leaky_relu_backward elu elu_backward softplus softplus_backward
mish mish_backward sigmoid_backward tanh_backward log_sigmoid_forward log_sigmoid_backward
glu_backward _prelu_kernel _prelu_kernel_backward _softmax_backward_data
_log_softmax_backward_data native_layer_norm native_layer_norm_backward native_group_norm
native_group_norm_backward native_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_functional _native_batch_norm_legit_no_training mse_loss
mse_loss_backward smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward
binary_cross_entropy binary_cross_entropy_backward soft_margin_loss soft_margin_loss_backward
nll_loss_forward nll_loss2d_forward nll_loss2d_backward select_backward slice_backward
diagonal_backward unfold_backward addcmul addcdiv masked_fill rsub linalg_vector_norm
reflection_pad2d_backward replication_pad2d_backward im2col_backward
""".split()  # noqa: SIM905 - a table reads better as words

_KEPT = """
relu addmm _softmax _log_softmax floor_divide threshold_backward split split_with_sizes
avg_pool2d max_pool2d_with_indices max_pool2d_with_indices_backward
""".split()  # noqa: SIM905 - a table reads better as words
"""Lowered directly. The stock decomposition of floor_divide goes through floating division."""


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


def convolution_backward(
    gradient: Tensor, features: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Any,
    groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of a convolution as convolutions and matrix products."""
    dimensions = features.dim() - 2
    stride, padding, dilation = (
        _spread(value, dimensions) for value in (stride, padding, dilation)
    )
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
    """Examples and channels trade places, stride and dilation too: for large windows."""
    if groups != 1:
        raise CompileError(
            f"a grouped convolution with a window of {prod(window)} taps is not supported "
            f"(limit {_MANY_TAPS})"
        )
    found = aten.convolution(
        wide.transpose(0, 1), narrow.transpose(0, 1), None, dilation, padding, stride, False,
        [0] * len(window), 1,
    )  # fmt: skip
    for axis, size in enumerate(window):
        found = aten.slice(found, axis + 2, 0, size)
    turned: Tensor = found.transpose(0, 1)
    return turned


def avg_pool2d_backward(
    gradient: Tensor, features: Tensor, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """A transposed convolution with a constant window, channel by channel."""
    kernel, padding = _spread(kernel_size, 2), _spread(padding, 2)
    stride = _spread(stride, 2) if stride else kernel
    if ceil_mode or (any(padding) and not count_include_pad):
        raise CompileError("avg_pool2d with ceil_mode or count_include_pad=False is not supported")
    height, width = (int(size) for size in features.shape[-2:])
    rows, columns = (int(size) for size in gradient.shape[-2:])
    share = 1.0 / (divisor_override or kernel[0] * kernel[1])
    window = torch.full((1, 1, *kernel), share, dtype=gradient.dtype, device=gradient.device)
    extra = [
        size + 2 * padding[axis] - (count - 1) * stride[axis] - kernel[axis]
        for axis, (size, count) in enumerate(((height, rows), (width, columns)))
    ]
    planes = gradient.reshape(-1, 1, rows, columns)
    spread = aten.convolution(planes, window, None, stride, padding, [1, 1], True, extra, 1)
    found: Tensor = spread.reshape(features.shape)
    return found


def adaptive_avg_pool2d_backward(gradient: Tensor, features: Tensor) -> Tensor:
    """Each output's share, repeated over its window."""
    height, width = (int(size) for size in features.shape[-2:])
    rows, columns = (int(size) for size in gradient.shape[-2:])
    if height % rows or width % columns:
        raise CompileError(
            f"adaptive_avg_pool2d from {height}x{width} to {rows}x{columns} has windows of unequal "
            "size, which is not supported: choose an output size that divides the input's"
        )
    tall, wide = height // rows, width // columns
    lead = list(features.shape[:-2])
    share = (gradient * (1.0 / (tall * wide))).unsqueeze(-1).unsqueeze(-3)
    return share.expand(*lead, rows, tall, columns, wide).reshape(features.shape)


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
    classes = torch.arange(int(log_probabilities.shape[1]), device=target.device)
    hit = (target.unsqueeze(1) == classes) & (target != ignore_index).unsqueeze(1)
    found = -hit.to(log_probabilities.dtype)
    if weight is not None:
        found = found * weight
    if reduction == 1:
        gradient = gradient / total_weight
    return found * (gradient.unsqueeze(1) if gradient.dim() else gradient)


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


def _spread(value: Sequence[int], dimensions: int) -> list[int]:
    """One number for each dimension; torch allows one for all."""
    return list(value) * dimensions if len(value) == 1 else list(value)


_OURS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten.embedding_dense_backward.default: embedding_dense_backward,
    aten.cumprod.default: running_product,
    aten.logcumsumexp.default: running_log_sum,
    aten.hypot.default: length_of_legs,
    aten.fmax.default: larger_number,
    aten.fmin.default: smaller_number,
    aten.copysign.Tensor: with_sign_of,
    aten.nll_loss_backward.default: nll_loss_backward,
    aten.native_batch_norm_backward.default: native_batch_norm_backward,
}
