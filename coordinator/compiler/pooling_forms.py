"""Poolings that ONNX has no operator for, and the gradients of average pooling.

An average over windows is a linear map of each axis by itself, whatever the windows: where windows
differ in size (adaptive pooling to a size that does not divide, ceil mode, padding not counted), a
small constant matrix per axis says it exactly, and its transpose is the gradient.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from coordinator.compiler.convolution_gradients import spread

aten = torch.ops.aten

Windows = list[tuple[int, int, int]]
"""For each output position of an axis: first place, place after the last, divisor."""


def average_pool(
    features: Tensor, kernel_size: Sequence[int], stride: Sequence[int] = (),
    padding: Sequence[int] = (0,), ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """Windows of unequal size as a product for each axis; ONNX has an operator for the others."""
    if not ceil_mode and divisor_override is None:
        return NotImplemented
    windows = _pooling_windows(
        features, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return _averaged(features, windows)


def average_pool_backward(
    gradient: Tensor, features: Tensor, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """Repetition where equal windows tile the input, else a product for each axis."""
    windows = _pooling_windows(
        features, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return _shared_out(gradient, features, windows)


def adaptive_average_pool(features: Tensor, output_size: Sequence[int]) -> Any:
    """Unequal windows as a product for each axis; ONNX has an operator for equal ones."""
    sizes = _last_sizes(features, len(output_size))
    if not any(size % count for size, count in zip(sizes, output_size, strict=True)):
        return NotImplemented
    return _averaged(features, _adaptive_windows(sizes, output_size))


def adaptive_average_pool_backward(gradient: Tensor, features: Tensor) -> Tensor:
    """Each output's share, spread over its window."""
    dimensions = features.dim() - 2
    sizes, counts = _last_sizes(features, dimensions), _last_sizes(gradient, dimensions)
    return _shared_out(gradient, features, _adaptive_windows(sizes, counts))


def adaptive_max_pool(features: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Max pooling over equal windows, made so by repeating each window's last row or column.

    Repeated values come after the value itself, so ties go where torch sends them.
    """
    sizes = _last_sizes(features, len(output_size))
    windows = _adaptive_windows(sizes, output_size)
    lengths = [max(end - start for start, end, _ in axis) for axis in windows]
    pool = _MAX_POOL[len(sizes)]
    if all(end - start == n for axis, n in zip(windows, lengths, strict=True)
           for start, end, _ in axis) and _tiled(windows, sizes):  # fmt: skip
        found: tuple[Tensor, Tensor] = pool(features, lengths)
        return found
    flat: Any = 0
    for index, (axis, length) in enumerate(zip(windows, lengths, strict=True)):
        places = [min(start + step, end - 1) for start, end, _ in axis for step in range(length)]
        chosen = _constant(places)
        features = features.index_select(index - len(sizes), chosen)
        flat = flat * sizes[index] + chosen.reshape([-1] + [1] * (len(sizes) - 1 - index))
    pooled, within = pool(features, lengths)
    return pooled, flat.reshape(-1)[within]


def max_pool_backward_by_indices(gradient: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    """Gradients added up where the maxima were, plane by plane."""
    planes = prod(_last_sizes(features, features.dim() - 2))
    zeros = torch.zeros_like(features).flatten(2)
    assert zeros.shape[-1] == planes
    added = zeros.scatter_add(2, indices.flatten(2), gradient.flatten(2))
    return added.reshape(features.shape)


def _pooling_windows(
    features: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> list[Windows]:  # fmt: skip
    """The windows of torch.nn.AvgPool1d/2d/3d. A fixed divisor goes to the first axis."""
    dimensions = features.dim() - 2
    kernel, padding = spread(kernel_size, dimensions), spread(padding, dimensions)
    stride = spread(stride, dimensions) if stride else kernel
    axes = zip(_last_sizes(features, dimensions), kernel, stride, padding, strict=True)
    found = [_axis_windows(*axis, ceil_mode, count_include_pad) for axis in axes]
    if divisor is not None:
        divisors = [divisor] + [1] * (dimensions - 1)
        found = [[(s, e, d) for s, e, _ in axis] for axis, d in zip(found, divisors, strict=True)]
    return found


def _axis_windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_padding: bool
) -> Windows:
    reach = size + 2 * padding - kernel
    count = (-(-reach // stride) if ceil_mode else reach // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # torch: the last window starts inside the input or the padding before it
    found = []
    for start in range(-padding, count * stride - padding, stride):
        end = min(start + kernel, size + padding)
        first, last = max(start, 0), min(end, size)
        found.append((first, last, end - start if count_padding else last - first))
    return found


def _adaptive_windows(sizes: Sequence[int], counts: Sequence[int]) -> list[Windows]:
    """The windows of torch.nn.AdaptiveAvgPool1d/2d/3d: they may overlap."""
    found = []
    for size, count in zip(sizes, counts, strict=True):
        bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        found.append([(start, end, end - start) for start, end in bounds])
    return found


def _averaged(features: Tensor, windows: list[Windows]) -> Tensor:
    """Each axis multiplied by its matrix of shares."""
    sizes = _last_sizes(features, len(windows))
    for index, (axis, size) in enumerate(zip(windows, sizes, strict=True)):
        features = _mapped(features, index - len(windows), _shares(axis, size).T)
    return features


def _shared_out(gradient: Tensor, features: Tensor, windows: list[Windows]) -> Tensor:
    sizes = _last_sizes(features, len(windows))
    if _tiled(windows, sizes):
        return _repeated(gradient, features, windows)
    for index, (axis, size) in enumerate(zip(windows, sizes, strict=True)):
        gradient = _mapped(gradient, index - len(windows), _shares(axis, size))
    return gradient


def _tiled(windows: list[Windows], sizes: Sequence[int]) -> bool:
    """Whether windows of one size cover each axis without gap or overlap."""
    return all(
        len({(end - start, divisor) for start, end, divisor in axis}) == 1
        and [start for start, _, _ in axis] == [0, *(end for _, end, _ in axis[:-1])]
        and axis[-1][1] == size
        for axis, size in zip(windows, sizes, strict=True)
    )


def _repeated(gradient: Tensor, features: Tensor, windows: list[Windows]) -> Tensor:
    lead = list(gradient.shape[: -len(windows)])
    narrow, wide = list(lead), list(lead)
    for axis in windows:
        narrow += [len(axis), 1]
        wide += [len(axis), axis[0][1] - axis[0][0]]
    share = gradient * (1.0 / prod(axis[0][2] for axis in windows))
    return share.reshape(narrow).expand(wide).reshape(features.shape)


def _shares(windows: Windows, size: int) -> Tensor:
    """[output position, input position]: the weight of an input in an output."""
    rows = [[float(s <= place < e) / d for place in range(size)] for s, e, d in windows]
    return _constant(rows)


def _constant(values: list[Any]) -> Tensor:
    """A tensor whose values the graph is to hold: made outside of the trace."""
    with _disable_current_modes():
        return torch.tensor(values)


def _mapped(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """One axis multiplied by a matrix [old size, new size]."""
    turned = values.transpose(axis, -1)
    found: Tensor = (turned @ matrix.to(values.dtype)).transpose(axis, -1)
    return found


def _last_sizes(features: Tensor, dimensions: int) -> list[int]:
    return [int(size) for size in features.shape[-dimensions:]]


_MAX_POOL: dict[int, Callable[..., Any]] = {
    2: aten.max_pool2d_with_indices, 3: aten.max_pool3d_with_indices,
}  # fmt: skip

POOLING_FORMS: dict[Any, Callable[..., Any]] = {
    aten.avg_pool2d.default: average_pool,
    aten.avg_pool3d.default: average_pool,
    aten.avg_pool2d_backward.default: average_pool_backward,
    aten.avg_pool3d_backward.default: average_pool_backward,
    aten._adaptive_avg_pool2d.default: adaptive_average_pool,
    aten._adaptive_avg_pool3d.default: adaptive_average_pool,
    aten._adaptive_avg_pool2d_backward.default: adaptive_average_pool_backward,
    aten._adaptive_avg_pool3d_backward.default: adaptive_average_pool_backward,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: max_pool_backward_by_indices,
    aten.adaptive_max_pool3d_backward.default: max_pool_backward_by_indices,
}
