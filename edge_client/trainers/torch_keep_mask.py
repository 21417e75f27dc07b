"""Dropout's mask in torch: the numbers of a plan's counter-based generator, in 32-bit arithmetic.

The generator is defined by the compiler, in 64-bit arithmetic that ONNX has; its module there,
`counter_random`, names the sources, and a test holds one against the other. Here a product wraps at
32 bits by itself, which takes half the memory and no masking.
"""

from collections.abc import Sequence
from math import prod

import torch

_FIRST_MULTIPLIER = 0x7FEB352D
_SECOND_MULTIPLIER = 0x68E31DA5
_COUNTER_STRIDE = 0x1E3779B1
_SITE_STRIDE = 0x3C6EF35F
_HALF = 2**31


def keep_mask(
    seed: torch.Tensor, site: int, shape: Sequence[int], probability: float, device: torch.device
) -> torch.Tensor:
    """A boolean tensor of `shape` on `device`, true with `1 - probability`.

    `seed` is an int64 scalar, on the CPU or the device; `site` numbers the places that draw.
    """
    counter = torch.arange(prod(shape), dtype=torch.int32, device=device)
    key = _key(seed, site)
    # as a constant torch.compile would multiply it into the index, beyond 32 bits, where Triton
    # refuses it; as a value, which comes from the seed, it stays one
    stride = key.bitwise_and(0).bitwise_or_(_COUNTER_STRIDE)
    drawn = _mixed_high(counter.mul_(stride).bitwise_xor_(key))
    least = min(round(probability * 2 * _HALF), 2 * _HALF - 1)
    # with the sign turned, signed numbers compare as unsigned ones do
    return (drawn.bitwise_xor_(-_HALF) >= least - _HALF).reshape(tuple(shape))


def _key(seed: torch.Tensor, site: int) -> torch.Tensor:
    low = seed.to(torch.int32)
    high = torch.div(seed, 2 * _HALF, rounding_mode="trunc").to(torch.int32)
    return _mix(_mix(low.bitwise_xor(_signed(site * _SITE_STRIDE))).bitwise_xor_(high))


def _mix(value: torch.Tensor) -> torch.Tensor:
    """In place: a bijection of 32-bit values in which each bit depends on all."""
    value = _mixed_high(value)
    return value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF))


def _mixed_high(value: torch.Tensor) -> torch.Tensor:
    """In place: all of the mixer but its last step, which a mask does without."""
    value.bitwise_xor_((value >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST_MULTIPLIER)
    return value.bitwise_xor_((value >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND_MULTIPLIER)


def _signed(number: int) -> int:
    return (number + _HALF) % (2 * _HALF) - _HALF
