"""Forms of torch functions that every runtime computes alike, in force while a model is traced.

Replaced are functions that draw random numbers (dropout, noise), fuse what has no portable backward
(attention), fix the batch while they are traced (padding, resampling) or loop in native code
(recurrent layers). Autograd differentiates the replacements.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from coordinator.compiler import portable, resampling
from coordinator.compiler.attention import attention
from coordinator.compiler.padding import padded
from coordinator.compiler.randomness import DRAWING, Draws
from headwater.errors import CompileError

_ATTENTION = F.scaled_dot_product_attention
_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")

_SPELLED_OUT: dict[Any, Callable[..., Any]] = {
    **resampling.FUNCTIONS, **portable.FUNCTIONS, F.pad: padded,
}  # fmt: skip
"""Functions that draw nothing, in other functions."""

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

    def __enter__(self) -> "PortableFunctions":
        if not self._entered:
            patches = self._patches()
            self._saved = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
            _set(patches)
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

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Divert the functions named above; run all others as they are."""
        kwargs = kwargs or {}
        if func is torch._nested_tensor_from_mask_left_aligned:
            return False  # a transformer encoder then keeps padded sequences as they are
        if func in DRAWING:
            return DRAWING[func](self.draws, *args, **kwargs)
        if func is _ATTENTION and (not self.only_random or _drops(*args, **kwargs)):
            return attention(self.draws, *args, **kwargs)
        if func in _SPELLED_OUT and not self.only_random:
            return _SPELLED_OUT[func](*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _CELLS and len(args) == 9:
            draws = args[5] and args[6]
            if draws or not self.only_random:
                return self._recurrent(name, *args)
        if getattr(func, "__module__", None) == F.__name__ and hasattr(func, "__code__"):
            self._passes = True
            with self:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _patches(self) -> list[_Patch]:
        """Names in torch that are bound anew: places that a mode cannot see."""
        return [
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

    def _recurrent(
        self,
        kind: str,
        inputs: Tensor,
        states: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        """Layers unrolled over time, with one input projection for all the steps."""
        directions = 2 if bidirectional else 1
        per_run = len(weights) // (layers * directions)
        if per_run != (4 if has_biases else 2):
            raise CompileError(f"{kind} with projections (proj_size) is not supported")
        sequence = inputs.transpose(0, 1) if batch_first else inputs
        pair = states if kind == "lstm" else (states,)
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                run = layer * directions + direction
                steps, final = _unrolled(
                    kind, sequence, tuple(state[run] for state in pair),
                    weights[run * per_run : (run + 1) * per_run], direction == 1,
                )  # fmt: skip
                outputs.append(steps)
                finals.append(final)
            sequence = torch.cat(outputs, -1) if directions == 2 else outputs[0]
            if dropout and training and layer < layers - 1:
                sequence = self.draws.dropped(sequence, dropout)
        output = sequence.transpose(0, 1) if batch_first else sequence
        return (output, *(torch.stack(list(state)) for state in zip(*finals, strict=True)))


def _is_said_to_be_causal(
    mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    """In place of torch's look at the mask's values: the mask is applied in any case."""
    return is_causal is True


def _set(patches: list[_Patch]) -> None:
    for owner, name, value in patches:
        setattr(owner, name, value)


def _drops(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    *_: Any, **__: Any,
) -> bool:  # fmt: skip
    """Whether a call of attention draws random numbers."""
    return dropout_p > 0


def _unrolled(
    kind: str,
    sequence: Tensor,
    state: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    input_weight, hidden_weight, *biases = weights
    input_bias, hidden_bias = biases or (None, None)
    projected = F.linear(sequence, input_weight, input_bias).unbind(0)
    count = len(projected)
    steps: list[Tensor] = [sequence] * count
    for time in reversed(range(count)) if backwards else range(count):
        recurrent = F.linear(state[0], hidden_weight, hidden_bias)
        state = _cell(kind, projected[time], recurrent, state)
        steps[time] = state[0]
    return torch.stack(steps), state


def _cell(
    kind: str, projected: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One time step, in the gate order of torch.nn.LSTM, GRU and RNN."""
    if kind == "lstm":
        entry, forget, candidate, output = (projected + recurrent).chunk(4, -1)
        memory = forget.sigmoid() * state[1] + entry.sigmoid() * candidate.tanh()
        return output.sigmoid() * memory.tanh(), memory
    if kind == "gru":
        width = recurrent.shape[-1] // 3
        gates = (projected[..., : 2 * width] + recurrent[..., : 2 * width]).sigmoid()
        reset, update = gates.chunk(2, -1)
        candidate = (projected[..., 2 * width :] + reset * recurrent[..., 2 * width :]).tanh()
        return (candidate + update * (state[0] - candidate),)
    total = projected + recurrent
    return (total.tanh() if kind == "rnn_tanh" else total.relu(),)
