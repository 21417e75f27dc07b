"""Functions of torch spelled out in functions that trace with an open batch and have a portable
backward. Each has torch's own arguments; autograd differentiates what is written here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from coordinator.compiler.decompositions import running_product
from coordinator.compiler.temporal_classification import ctc_loss
from headwater.errors import CompileError

FUNCTIONS: dict[Any, Callable[..., Any]] = {torch.ctc_loss: ctc_loss}
"""Replacements by the function of torch."""


def _replaces(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(replacement: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(functions, replacement))
        return replacement

    return register


# ruff: noqa: A002 - arguments have torch's names


@_replaces(torch.hardshrink, Tensor.hardshrink)
def _hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return input * (input.abs() > lambd).to(input.dtype)


@_replaces(torch._C._nn.softshrink)
def _softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return input - input.clamp(-lambd, lambd)


@_replaces(torch.sgn, Tensor.sgn)
def _sign(input: Tensor) -> Tensor:
    return input.sign()


@_replaces(torch.lerp, Tensor.lerp)
def _between(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return input + (end - input) * weight


@_replaces(torch.addcmul, Tensor.addcmul)
def _plus_product(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + tensor1 * tensor2 * value


@_replaces(torch.addcdiv, Tensor.addcdiv)
def _plus_quotient(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + tensor1 / tensor2 * value


@_replaces(torch.kron, Tensor.kron)
def _kronecker(input: Tensor, other: Tensor) -> Tensor:
    rank = max(input.dim(), other.dim())
    left = input.reshape([1] * (rank - input.dim()) + list(input.shape))
    right = other.reshape([1] * (rank - other.dim()) + list(other.shape))
    shape = [a * b for a, b in zip(left.shape, right.shape, strict=True)]
    for axis in range(rank):
        left, right = left.unsqueeze(2 * axis + 1), right.unsqueeze(2 * axis)
    return (left * right).reshape(shape)


@_replaces(torch.take_along_dim, Tensor.take_along_dim)
def _taken(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return input.reshape(-1).gather(0, indices.reshape(-1))
    axis = dim % input.dim()
    for other in range(input.dim()):
        if other != axis and isinstance(indices.shape[other], int) and indices.shape[other] == 1:
            indices = indices.expand(
                *indices.shape[:other], input.shape[other], *indices.shape[other + 1 :]
            )
    return input.gather(axis, indices)


@_replaces(torch.cosine_similarity)
def _cosine(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = [x.square().sum(dim).clamp(min=eps * eps).sqrt() for x in (x1, x2)]
    return (x1 * x2).sum(dim) / (lengths[0] * lengths[1])


@_replaces(torch.vdot, Tensor.vdot)
def _product(input: Tensor, other: Tensor) -> Tensor:
    return input.dot(other)


@_replaces(torch.bilinear)
def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    outputs, left, right = weight.shape
    flat = input1 @ weight.permute(1, 0, 2).reshape(left, outputs * right)
    found = (flat.reshape(*flat.shape[:-1], outputs, right) * input2.unsqueeze(-2)).sum(-1)
    return found if bias is None else found + bias


@_replaces(torch.cdist, torch.functional.cdist)
def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return found


@_replaces(torch.cumprod, Tensor.cumprod)
def _running_product(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return running_product(input, dim, dtype=dtype)


@_replaces(torch._weight_norm)
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Salimans, Kingma, "Weight normalization", NeurIPS 2016."""
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim() or dim == -1]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


@_replaces(torch.scatter_reduce, Tensor.scatter_reduce)
def _scatter_reduced(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    if reduce != "sum" or not include_self:
        raise CompileError(
            f"scatter_reduce with reduce={reduce!r}, include_self={include_self} is not supported: "
            "use scatter_add, and for a mean divide by a scatter_add of ones"
        )
    return input.scatter_add(dim, index, src)


@_replaces(torch.embedding)
def _rows(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:  # fmt: skip
    if sparse:
        raise CompileError(
            "an embedding with sparse=True is not supported, since gradients in a plan are dense: "
            "leave out sparse=True"
        )
    return torch.embedding(weight, indices, padding_idx, scale_grad_by_freq)


@_replaces(torch.embedding_renorm_)
def _renormalized(*_: Any) -> Tensor:
    raise CompileError(
        "max_norm writes the embedding's weights in the forward pass, which is not supported: "
        "divide the looked-up rows by their norm instead"
    )


@_replaces(F.embedding_bag)
def _bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean",
    sparse: bool = False, per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    if max_norm is not None:
        _renormalized()
    if offsets is not None or input.dim() != 2:
        raise CompileError(
            "embedding bags of unequal size (offsets) are not supported: give indices "
            "[batch, size], filled up with padding_idx"
        )
    padding = -1 if padding_idx is None else padding_idx % int(weight.shape[0])
    rows: Tensor = _rows(weight, input, padding, scale_grad_by_freq, sparse)
    counted = None if padding_idx is None else (input != padding).unsqueeze(-1)
    if mode == "max":
        return _largest(rows, counted)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if counted is not None:
        rows = rows * counted.to(rows.dtype)
    total = rows.sum(1)
    if mode == "sum":
        return total
    if counted is None:
        return total / int(input.shape[1])
    return total / counted.to(rows.dtype).sum(1).clamp(min=1)


def _largest(rows: Tensor, counted: Tensor | None) -> Tensor:
    """By the index of the largest, so that a tie sends its gradient to one row, as torch does."""
    if counted is None:
        return rows.max(1).values
    lowest = torch.finfo(rows.dtype).min
    found = rows.masked_fill(~counted, lowest).max(1).values
    return found * counted.any(1).to(rows.dtype)


@_replaces(torch.affine_grid_generator)
def _affine_grid(theta: Tensor, size: Sequence[Any], align_corners: bool) -> Tensor:
    """Points [batch, height, width, 2] (or of three dimensions), each theta times (x, y, 1)."""
    axes = []
    for count in map(int, size[2:]):
        edge = 1.0 if align_corners else 1.0 - 1.0 / count
        points = torch.arange(count, dtype=theta.dtype, device=theta.device)
        step = 2.0 * edge / (count - 1) if count > 1 else 0.0
        axes.append(points * step - edge if count > 1 else points)
    grid = torch.stack([*reversed(torch.meshgrid(*axes, indexing="ij")), torch.ones_like(
        torch.meshgrid(*axes, indexing="ij")[0])], -1)  # fmt: skip
    rank = grid.shape[-1]
    found = grid.reshape(1, -1, rank) @ theta.transpose(1, 2)
    return found.reshape(theta.shape[0], *map(int, size[2:]), rank - 1)


_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1


@_replaces(torch.grid_sampler, torch.grid_sampler_2d)
def _sampled(
    input: Tensor, grid: Tensor, mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Jaderberg et al., "Spatial transformer networks", NeurIPS 2015: values at points of [-1, 1]².

    Corners are read by one gather each from the flattened plane.
    """
    if input.dim() != 4 or mode not in (_BILINEAR, _NEAREST) or padding_mode not in (
        _ZEROS, _BORDER,
    ):  # fmt: skip
        raise CompileError(
            "grid_sample is supported for images, with mode 'bilinear' or 'nearest' and "
            "padding_mode 'zeros' or 'border'"
        )
    sizes = [int(size) for size in input.shape[-2:]]
    places = []
    for coordinate, size in zip((grid[..., 1], grid[..., 0]), sizes, strict=True):
        scaled = (coordinate + 1) * ((size - 1) / 2) if align_corners else (
            (coordinate + 1) * (size / 2) - 0.5
        )  # fmt: skip
        places.append(scaled.clamp(0, size - 1) if padding_mode == _BORDER else scaled)
    if mode == _NEAREST:
        return _corner(input, [place.detach().round() for place in places], sizes)
    lows = [place.detach().floor() for place in places]
    total = None
    for down in (0, 1):
        for right in (0, 1):
            corner = [lows[0] + down, lows[1] + right]
            shares = [1 - (place - at).abs() for place, at in zip(places, corner, strict=True)]
            part = _corner(input, corner, sizes) * (shares[0] * shares[1]).unsqueeze(1)
            total = part if total is None else total + part
    assert total is not None
    return total


def _corner(features: Tensor, corner: list[Tensor], sizes: list[int]) -> Tensor:
    """Values [batch, channel, ...] at whole coordinates [batch, ...], zeros outside."""
    inside = [(at >= 0) & (at <= size - 1) for at, size in zip(corner, sizes, strict=True)]
    rows, columns = (
        at.clamp(0, size - 1).to(torch.int64) for at, size in zip(corner, sizes, strict=True)
    )
    flat = (rows * sizes[1] + columns).flatten(1).unsqueeze(1)
    channels = int(features.shape[1])
    found = features.flatten(2).gather(2, flat.expand(-1, channels, -1))
    shape = corner[0].shape
    visible = (inside[0] & inside[1]).unsqueeze(1).to(features.dtype)
    return found.reshape(shape[0], channels, *shape[1:]) * visible
