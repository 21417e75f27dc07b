"""Forms of torch functions that every runtime computes alike, in force while a model is traced.

Replaced are functions that draw random numbers (dropout), fuse what has no portable backward
(attention) or loop in native code (recurrent layers). Autograd differentiates the replacements.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from coordinator.compiler.counter_random import keep_mask
from coordinator.compiler.layer_forms import (
    batch_norm_forward,
    local_response_norm,
    same_convolution,
)
from coordinator.compiler.recurrent_functions import RecurrentFunctions
from headwater.errors import CompileError

_ATTENTION = F.scaled_dot_product_attention
_DROPOUTS = {
    F.dropout: False, torch.dropout: False, F.dropout1d: True, F.dropout2d: True,
    F.dropout3d: True, torch.feature_dropout: True, F.alpha_dropout: None,
    F.feature_alpha_dropout: None,
}  # fmt: skip
"""Whether whole channels are dropped; None for forms that are not supported."""
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_BATCH_NORMS = (_BatchNorm, nn.SyncBatchNorm)
"""Without a process group the latter is the former."""

MASKED_SCORE = -1e30
"""Added to attention scores that must not count; unlike minus infinity it makes no NaN."""


class PortableFunctions(TorchFunctionMode):
    """While entered, dropout draws from `seed` (int64 scalar) and fused functions are spelled out.

    With `only_random`, functions that draw nothing run as torch has them: eager torch with the same
    masks, the yardstick of the parity gate. `sites` counts the places that drew.
    """

    def __init__(self, seed: Tensor, only_random: bool = False) -> None:
        super().__init__()
        self.seed = seed
        self.only_random = only_random
        self.sites = 0
        self._replaced: list[tuple[type[nn.Module], Callable[..., Any]]] = []
        self.recurrences = RecurrentFunctions(self._dropout, native=only_random)

    def __enter__(self) -> "PortableFunctions":
        # F.multi_head_attention_forward runs outside of the mode: reach its attention by name
        F.scaled_dot_product_attention = self._attention
        if not self.only_random:
            self._replaced = [(kind, kind.forward) for kind in _BATCH_NORMS]
            for kind in _BATCH_NORMS:
                kind.forward = batch_norm_forward  # type: ignore[assignment]
        self.recurrences.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        F.scaled_dot_product_attention = _ATTENTION
        for replaced, forward in self._replaced:
            replaced.forward = forward
        self.recurrences.__exit__()
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Divert the functions named above; run all others as they are."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return self._diverted_dropout(func, *args, **kwargs)
        if func is _ATTENTION:
            return self._attention(*args, **kwargs)
        if func is F.pad and not self.only_random:
            return _padded(*args, **kwargs)
        if func in _CONVOLUTIONS and not self.only_random:
            return same_convolution(func, _padded, *args, **kwargs)
        if func is F.local_response_norm and not self.only_random:
            return local_response_norm(*args, **kwargs)
        if self.recurrences.takes(func, args):
            return self.recurrences.call(func, args)
        return func(*args, **kwargs)

    def _diverted_dropout(
        self,
        func: Callable[..., Any],
        input: Tensor,  # noqa: A002 - torch's name
        p: float = 0.5,
        training: bool | None = None,
        inplace: bool = False,
        train: bool | None = None,
    ) -> Tensor:
        active = train if train is not None else training if training is not None else True
        if not active:
            return input
        by_channel = _DROPOUTS[func]
        if by_channel is None:
            raise CompileError(
                f"{getattr(func, '__name__', func)} is not supported: use dropout instead"
            )
        return self._dropout(input, p, by_channel)

    def _dropout(self, values: Tensor, probability: float, by_channel: bool = False) -> Tensor:
        if probability == 0:
            return values
        if not 0 < probability < 1:
            raise CompileError(f"dropout with probability {probability}: expected 0 <= p < 1")
        self.sites += 1
        shape = tuple(values.shape)
        if by_channel:
            shape = (*shape[:2], *(1,) * (len(shape) - 2))
        keep = keep_mask(self.seed, self.sites, shape, probability)
        return values * (keep.to(values.dtype) * (1.0 / (1.0 - probability)))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.only_random and not dropout_p:
            return _ATTENTION(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (part.repeat_interleave(repeats, -3) for part in (key, value))
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(
            -2, -1
        )
        if is_causal:
            shape = (query.shape[-2], key.shape[-2])
            scores = scores + _scores_where_not(
                torch.ones(shape, dtype=torch.bool, device=query.device).tril(), scores
            )
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores + (_scores_where_not(attn_mask, scores) if masked else attn_mask)
        return self._dropout(torch.softmax(scores, -1), dropout_p) @ value


def _padded(
    input: Tensor,  # noqa: A002 - torch's name
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    """Padding by joining or by indices: torch's own constant_pad_nd fixes the batch while it is
    traced, and its other kernels have no counterpart in ONNX.
    """
    for pair in range(len(pad) // 2):
        axis = input.dim() - 1 - pair
        low, high = pad[2 * pair : 2 * pair + 2]
        if mode != "constant":
            positions = _positions(int(input.shape[axis]), low, high, mode)
            input = input.index_select(axis, torch.tensor(positions, device=input.device))  # noqa: A001
            continue
        input = input.narrow(axis, max(-low, 0), input.shape[axis] - max(-low, 0) - max(-high, 0))  # noqa: A001
        sides = [
            input.new_full((*input.shape[:axis], size, *input.shape[axis + 1 :]), value or 0.0)
            for size in (max(low, 0), max(high, 0))
        ]
        kept = [part for part in (sides[0], input, sides[1]) if part.shape[axis] != 0]
        input = torch.cat(kept, axis)  # noqa: A001
    return input


def _positions(size: int, low: int, high: int, mode: str) -> list[int]:
    """Which elements of a dimension stand in the padded one."""
    if mode == "circular":
        return [position % size for position in range(-low, size + high)]
    if mode == "replicate":
        return [min(max(position, 0), size - 1) for position in range(-low, size + high)]
    if mode == "reflect" and max(low, high) < size:
        last = size - 1
        return [last - abs(last - abs(position)) for position in range(-low, size + high)]
    raise CompileError(
        f"padding a dimension of {size} by {low} and {high} in mode {mode!r} is not possible: "
        "the modes are constant, reflect (by less than the size), replicate and circular"
    )


def _scores_where_not(allowed: Tensor, scores: Tensor) -> Tensor:
    """0 where attention is allowed and a large negative score elsewhere; added, not selected."""
    return (~allowed).to(scores.dtype) * MASKED_SCORE
