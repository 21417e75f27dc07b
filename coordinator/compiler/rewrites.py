"""Forms of torch functions that every runtime computes alike, in force while a model is traced.

Replaced are functions that draw random numbers (dropout, noise), fuse what has no portable backward
(attention), fix the batch while they are traced (padding, resampling) or loop in native code
(recurrent layers). Autograd differentiates the replacements.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from coordinator.compiler import margin_losses, portable, resampling
from coordinator.compiler.attention import attention
from coordinator.compiler.layer_forms import (
    batch_norm_forward,
    fractional_max_pool,
    local_response_norm,
    same_convolution,
)
from coordinator.compiler.padding import padded
from coordinator.compiler.randomness import DRAWING, Draws
from coordinator.compiler.recurrent_functions import RecurrentFunctions

_ATTENTION = F.scaled_dot_product_attention
_SPELLED_OUT: dict[Any, Callable[..., Any]] = {
    **resampling.FUNCTIONS, **portable.FUNCTIONS, **margin_losses.FUNCTIONS, F.pad: padded,
    F.local_response_norm: local_response_norm,
    F.fractional_max_pool2d_with_indices: fractional_max_pool,
    F.fractional_max_pool3d_with_indices: fractional_max_pool,
    **{one: partial(same_convolution, one, padded) for one in (F.conv1d, F.conv2d, F.conv3d)},
}  # fmt: skip
"""Functions that draw nothing, in other functions."""


def _normalized(
    input: Tensor,  # noqa: A002 - torch's name
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Tensor:
    """F.normalize; into `out`, as spectral_norm does, by a copy."""
    found = F.normalize(input, p, dim, eps)
    return found if out is None else out.copy_(found)


_IN_ANY_CASE: dict[Any, Callable[..., Any]] = {
    F.normalize: _normalized,
    # a transformer encoder then keeps padded sequences as they are
    torch._nested_tensor_from_mask_left_aligned: lambda *_: False,
}
"""In torch's own form of a step too."""

_UNTRACEABLE = (
    torch.ctc_loss, F.gaussian_nll_loss, torch._C._nn.multi_margin_loss,
    torch._C._nn.multilabel_margin_loss, torch.take_along_dim, Tensor.take_along_dim, torch.kron,
    Tensor.kron,
)  # fmt: skip
"""Of these, what torch cannot trace as they are: values or sizes decide how they run."""

_BATCH_NORMS = (_BatchNorm, nn.SyncBatchNorm)
"""Without a process group the latter is the former."""

_Patch = tuple[Any, str, Any]
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


class PortableFunctions(TorchFunctionMode):
    """While entered, random numbers follow from `seed` (int64 scalar) and fused functions are
    spelled out.

    With `only_random`, functions that draw nothing run as torch has them: eager torch with the same
    random numbers, the yardstick of the parity gate.
    """

    def __init__(self, seed: Tensor, only_random: bool = False) -> None:
        super().__init__()
        self.draws = Draws(seed)
        self.only_random = only_random
        self._entered = 0
        self._passes = False
        self._saved: list[_Patch] = []
        self._recurrences = RecurrentFunctions(self.draws.dropped, native=only_random)

    def __enter__(self) -> "PortableFunctions":
        if not self._entered:
            patches = self._patches()
            self._saved = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
            _set(patches)
            self._recurrences.__enter__()
        self._entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._entered -= 1
        if not self._entered:
            _set(self._saved)
            self._recurrences.__exit__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Divert the functions named above; run all others as they are."""
        kwargs = kwargs or {}
        if func in _IN_ANY_CASE:
            return _IN_ANY_CASE[func](*args, **kwargs)
        if func in DRAWING:
            return DRAWING[func](self.draws, *args, **kwargs)
        if func is _ATTENTION and (not self.only_random or _drops(*args, **kwargs)):
            return attention(self.draws, *args, **kwargs)
        if func in _SPELLED_OUT and (
            not self.only_random or _is_untraceable(func, (*args, *kwargs.values()))
        ):
            return _SPELLED_OUT[func](*args, **kwargs)
        if self._recurrences.takes(func, args):
            return self._recurrences.call(func, args)
        if getattr(func, "__module__", None) == F.__name__ and hasattr(func, "__code__"):
            self._passes = True
            with self:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _patches(self) -> list[_Patch]:
        """Names in torch that are bound anew: places that a mode cannot see."""
        return [
            *((kind, "forward", batch_norm_forward) for kind in _BATCH_NORMS),
            *((F, name, self._check(getattr(torch.overrides, name))) for name in _CHECKS),
            (Distribution, "_validate_args", False),
            (transformer, "_detect_is_causal_mask", _is_said_to_be_causal),
        ]

    def _check(self, original: Callable[..., bool]) -> Callable[..., bool]:
        """What functions of torch.nn.functional ask first: whether a mode wants to see the call.

        They are seen twice, as a whole and then, here let pass, by the calls of their bodies: torch
        itself would run the body of multi_head_attention_forward outside of any mode.
        """

        def check(*arguments: Any) -> bool:
            passes, self._passes = self._passes, False
            return not passes and original(*arguments)

        return check


def _is_said_to_be_causal(
    mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    """In place of torch's look at the mask's values: the mask is applied in any case."""
    return is_causal is True


def _set(patches: list[_Patch]) -> None:
    for owner, name, value in patches:
        setattr(owner, name, value)


def _is_untraceable(func: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether torch cannot trace the call as it is."""
    return func in _UNTRACEABLE and any(isinstance(one, FakeTensor) for one in arguments)


def _drops(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    *_: Any, **__: Any,
) -> bool:  # fmt: skip
    """Whether a call of attention draws random numbers."""
    return dropout_p > 0
