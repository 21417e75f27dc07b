"""Resampling and windows as products with constant matrices and convolutions.

Each function has torch's own arguments; autograd differentiates what is written here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

Resampling = Callable[..., Tensor]


def _nearest(kernel: Resampling, axes: int) -> Resampling:
    def resample(
        input: Tensor,  # noqa: A002 - torch's name
        output_size: Sequence[int] | None,
        scale_factors: Sequence[float] | None = None,
    ) -> Tensor:
        return _resampled(kernel, axes, input, output_size, (), scale_factors)

    return resample


def _smooth(kernel: Resampling, axes: int) -> Resampling:
    def resample(
        input: Tensor,  # noqa: A002 - torch's name
        output_size: Sequence[int] | None,
        align_corners: bool,
        scale_factors: Sequence[float] | None = None,
    ) -> Tensor:
        return _resampled(kernel, axes, input, output_size, (align_corners,), scale_factors)

    return resample


_NEAREST = {
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3,
    "_upsample_nearest_exact1d": 1, "_upsample_nearest_exact2d": 2, "_upsample_nearest_exact3d": 3,
}  # fmt: skip
_SMOOTH = {
    "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_trilinear3d": 3,
    "upsample_bicubic2d": 2, "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2,
}  # fmt: skip

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    getattr(torch._C._nn, name): form(getattr(torch._C._nn, name), axes)
    for form, names in ((_nearest, _NEAREST), (_smooth, _SMOOTH))
    for name, axes in names.items()
}
"""Replacements by the function of torch."""


def _resampled(
    kernel: Resampling,
    axes: int,
    features: Tensor,
    output_size: Sequence[int] | None,
    settings: tuple[Any, ...],
    scale_factors: Sequence[float] | None,
) -> Tensor:
    """One axis after the other: all of torch's kernels are linear and separable."""
    for index in range(axes):
        axis = features.dim() - axes + index
        size = int(features.shape[axis])
        scale = None if scale_factors is None else scale_factors[index]
        wanted = int(size * scale) if output_size is None else int(output_size[index])  # type: ignore[operator]
        repeats = wanted // size
        if not settings and wanted == size * repeats and scale in (None, repeats):
            features = _repeated(features, axis, repeats)
            continue
        matrix = _matrix(kernel, axes, size, wanted, settings, scale, features.dtype)
        features = _along(features, axis, matrix.to(features.device))
    return features


def _repeated(features: Tensor, axis: int, repeats: int) -> Tensor:
    """Each element `repeats` times in a row."""
    if repeats == 1:
        return features
    shape = list(features.shape)
    column = features.unsqueeze(axis + 1)
    expanded = column.expand(*shape[: axis + 1], repeats, *shape[axis + 1 :])
    shape[axis] = shape[axis] * repeats
    return expanded.reshape(shape)


def _along(features: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The product with `matrix` [size, wanted] along one axis."""
    if axis == features.dim() - 1:
        return features @ matrix
    return (features.transpose(axis, -1) @ matrix).transpose(axis, -1)


def _matrix(
    kernel: Resampling,
    axes: int,
    size: int,
    wanted: int,
    settings: tuple[Any, ...],
    scale: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """[size, wanted]: what torch's kernel makes of the unit vectors, in float64.

    The other axes have size 2, since torch's anti-aliasing kernel is wrong for a width of 1.
    """
    others = [2] * (axes - 1)
    with _disable_current_modes(), torch.no_grad():
        units = torch.eye(size, dtype=torch.float64).reshape(1, size, size, *[1] * (axes - 1))
        units = units.expand(1, size, size, *others).contiguous()
        scales = None if scale is None else [float(scale), *[1.0] * (axes - 1)]
        found = kernel(units, None if scales else [wanted, *others], *settings, scales)
        return found.reshape(size, wanted, -1)[..., 0].to(dtype)


def _windows(
    input: Tensor,  # noqa: A002 - torch's name
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Unfold: a convolution whose kernels each see one place of one channel's window."""
    features = input if input.dim() == 4 else input.unsqueeze(0)
    channels = int(features.shape[1])
    kernel = _single_taps(channels, _pair(kernel_size), features)
    found = F.conv2d(
        features, kernel, None, _pair(stride), _pair(padding), _pair(dilation), channels
    ).flatten(2)
    return found if input.dim() == 4 else found.squeeze(0)


def _folded(
    input: Tensor,  # noqa: A002 - torch's name
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Fold, the transpose of unfold: overlapping windows are added up."""
    columns = input if input.dim() == 3 else input.unsqueeze(0)
    window, pads, steps, gaps = map(_pair, (kernel_size, padding, stride, dilation))
    spans = [gap * (taps - 1) + 1 for gap, taps in zip(gaps, window, strict=True)]
    padded = [size + 2 * pad for size, pad in zip(_pair(output_size), pads, strict=True)]
    counts = [
        (size - span) // step + 1 for size, span, step in zip(padded, spans, steps, strict=True)
    ]
    rest = [
        size - (count - 1) * step - span
        for size, count, step, span in zip(padded, counts, steps, spans, strict=True)
    ]
    channels = int(columns.shape[1]) // (window[0] * window[1])
    kernel = _single_taps(channels, window, columns)
    planes = columns.reshape(columns.shape[0], columns.shape[1], *counts)
    found = F.conv_transpose2d(planes, kernel, None, steps, 0, rest, channels, gaps)
    for axis, (pad, size) in enumerate(zip(pads, _pair(output_size), strict=True)):
        found = found.narrow(axis + 2, pad, size)
    return found if input.dim() == 3 else found.squeeze(0)


FUNCTIONS[torch._C._nn.im2col] = _windows
FUNCTIONS[torch._C._nn.col2im] = _folded


def _single_taps(channels: int, window: list[int], like: Tensor) -> Tensor:
    """Kernels [channels * taps, 1, *window], each one at one place."""
    taps = window[0] * window[1]
    with _disable_current_modes():
        kernels = torch.eye(taps, dtype=like.dtype).reshape(taps, 1, *window)
    return kernels.to(like.device).repeat(channels, 1, 1, 1)


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value]
