"""Random numbers that are a function of a seed and a position, equal on every runtime.

A counter-based generator in the sense of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as
easy as 1, 2, 3", SC 2011: no state, so torch on any device and onnxruntime draw the same numbers.
The mixer is two rounds of multiply and shift in the manner of Wellons, "Hash function prospector",
2018, with odd multipliers below 2**31 so that every product of 32-bit values fits in a signed
64-bit integer (onnxruntime has no 32-bit unsigned multiplication). Meant for dropout, noise
and augmentation, not for privacy.

`seed` is an int64 scalar; `site` numbers the places in a model that draw, so that two layers with
one seed draw apart.
"""

from collections.abc import Callable, Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FIRST_MULTIPLIER = 0x7FEB352D
_SECOND_MULTIPLIER = 0x68E31DA5
_COUNTER_STRIDE = 0x1E3779B1
_SITE_STRIDE = 0x3C6EF35F
_UNIFORM_BITS = 24
"""As many as float32 holds: a drawn fraction is exact in float32 and float64 alike."""


_LIBRARY = torch.library.Library("headwater", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "keep_mask(Tensor seed, int site, SymInt[] shape, float probability) -> Tensor"
)


def keep_mask(seed: Tensor, site: int, shape: Sequence[Any], probability: float) -> Tensor:
    """A boolean tensor of `shape`, true with `1 - probability`.

    A trace holds this as one call, which `RANDOM` takes apart for ONNX.
    """
    mask: Tensor = KEEP_MASK(seed, site, shape, probability)
    return mask


def _keep_mask(seed: Tensor, site: int, shape: Sequence[Any], probability: float) -> Tensor:
    drawn = _scrambled(seed, site, shape)  # the last step of the mixer changes low bits alone
    return (drawn >= round(probability * 2**32)).reshape(tuple(shape))


def uniform(seed: Tensor, site: int, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Fractions 0 <= u < 1 in steps of 2**-24, the same in every floating dtype."""
    whole = _shifted(_drawn(seed, site, shape), 32 - _UNIFORM_BITS)
    return whole.reshape(tuple(shape)).to(dtype) * 2.0**-_UNIFORM_BITS


def whole_numbers(seed: Tensor, site: int, shape: Sequence[Any], count: int) -> Tensor:
    """An int64 tensor of `shape`, uniform over 0 to `count` - 1, where `count` is below 2**31.

    No number is likelier than another by more than `count / 2**32` of its share.
    """
    return _shifted(_drawn(seed, site, shape) * count, 32).reshape(tuple(shape))


def normal(seed: Tensor, site: int, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, of magnitude below 5.8; equal on all runtimes but for rounding.

    Box, Muller, "A note on the generation of random normal deviates", Annals of Mathematical
    Statistics, 1958; only the cosine of each pair is used, so that an element depends on its
    position alone.
    """
    pairs = uniform(seed, site, (2, *shape), dtype)
    radius = ((1.0 - pairs[0]).log() * -2.0).sqrt()
    return radius * (pairs[1] * (2.0 * pi)).cos()


def _drawn(seed: Tensor, site: int, shape: Sequence[Any]) -> Tensor:
    """A 32-bit number (held in int64) for each element, as a vector."""
    value = _scrambled(seed, site, shape)
    return value ^ _shifted(value, 16)


def _scrambled(seed: Tensor, site: int, shape: Sequence[Any]) -> Tensor:
    """The same before the mixer's last step, which only spreads high bits to low ones.

    A plan's tensors have fewer than 2**31 elements, so a counter times its stride fits in 63 bits.
    """
    count = 1
    for size in shape:
        count = count * size
    key = _mix((seed & _MASK) ^ ((site * _SITE_STRIDE) & _MASK))
    key = _mix(key ^ (_shifted(seed, 32) & _MASK))
    counter = torch.arange(count, dtype=torch.int64, device=seed.device)
    return _mixed_high(((counter * _COUNTER_STRIDE) & _MASK) ^ key)


def _shape_alone(seed: Tensor, site: int, shape: Sequence[Any], probability: float) -> Tensor:
    return seed.new_empty(tuple(shape), dtype=torch.bool)


_LIBRARY.impl("keep_mask", _keep_mask, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("keep_mask", _shape_alone, "Meta")  # type: ignore[no-untyped-call]
KEEP_MASK = torch.ops.headwater.keep_mask.default
RANDOM: dict[Any, Callable[..., Any]] = {KEEP_MASK: _keep_mask}
"""Decompositions."""


def _mix(value: Tensor) -> Tensor:
    """A bijection of 32-bit values (held in int64) in which each bit depends on all."""
    value = _mixed_high(value)
    return value ^ _shifted(value, 16)


def _mixed_high(value: Tensor) -> Tensor:
    """All of the mixer but its last step: high bits depend on all bits."""
    value = value ^ _shifted(value, 16)
    value = (value * _FIRST_MULTIPLIER) & _MASK
    value = value ^ _shifted(value, 15)
    return (value * _SECOND_MULTIPLIER) & _MASK


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A right shift as a division that truncates: ONNX shifts unsigned integers only."""
    return torch.div(value, 1 << bits, rounding_mode="trunc")
