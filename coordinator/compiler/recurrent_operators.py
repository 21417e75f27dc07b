"""Recurrent layers as single operators, so that a traced graph does not grow with the sequence.

`headwater::lstm`, `gru` and `rnn` run one layer in one direction over an input that was projected
beforehand, and keep what the backward pass reads. Each has a counterpart `..._backward`, a linear
recurrence in the opposite direction whose factors were computed for all steps at once. Here they
are defined and spelled out in torch, one step after the other, which says what they mean; on
devices they are Scans (`onnx_recurrence`).

Shapes: T steps, B examples, H the layer's width, P the width of its output (H, but for an LSTM with
projections). `projected` is [T, B, gates * H] with the gates in torch's order, states are [B, H] or
[B, P], weights are torch's. A `mask` [T, B, 1] of ones and zeros holds the state where it is zero.
With `reverse` the steps run from the last to the first; what comes out keeps the input's order.
Results are first those with a slice for every step, then the states after the last one.

Hochreiter, Schmidhuber, "Long short-term memory", Neural Computation, 1997; Cho et al., "Learning
phrase representations using RNN encoder-decoder for statistical machine translation", EMNLP 2014,
in the form of torch.nn.GRU, which resets after the product.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

_SCHEMAS = (
    "lstm(Tensor projected, Tensor hidden, Tensor memory, Tensor weight, Tensor? projection, "
    "Tensor? mask, bool reverse) -> (Tensor hiddens, Tensor memories, Tensor entry, "
    "Tensor forget, Tensor candidate, Tensor exit, Tensor squashed, Tensor last_hidden, "
    "Tensor last_memory)",
    "lstm_backward(Tensor gradient, Tensor to_hidden, Tensor to_memory, Tensor weight, "
    "Tensor? projection, Tensor[] factors, Tensor? hold, bool reverse) -> (Tensor to_projected, "
    "Tensor to_hiddens, Tensor to_hidden, Tensor to_memory)",
    "gru(Tensor projected, Tensor hidden, Tensor weight, Tensor? bias, Tensor? mask, bool reverse) "
    "-> (Tensor hiddens, Tensor reset, Tensor update, Tensor candidate, Tensor recurrent, "
    "Tensor last_hidden)",
    "gru_backward(Tensor gradient, Tensor to_hidden, Tensor weight, Tensor[] factors, "
    "bool reverse) -> (Tensor to_recurrent, Tensor to_hiddens, Tensor to_hidden)",
    "rnn(Tensor projected, Tensor hidden, Tensor weight, Tensor? mask, bool rectified, "
    "bool reverse) -> (Tensor hiddens, Tensor last_hidden)",
    "rnn_backward(Tensor gradient, Tensor to_hidden, Tensor weight, Tensor factor, Tensor? hold, "
    "bool reverse) -> (Tensor to_projected, Tensor to_hidden)",
)
_LIBRARY = torch.library.Library("headwater", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]

Tensors = tuple[Tensor, ...]


def _kernel(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Registers a function as its operator's kernel."""
    name = function.__name__
    torch.library.impl(_LIBRARY, name, "CompositeExplicitAutograd")(function)
    return function


def _shapes(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Registers a function that gives results of the right shapes without values."""
    name = function.__name__.removeprefix("_").removesuffix("_shapes")
    torch.library.register_fake(f"headwater::{name}")(function)
    return function


def _order(sequence: Tensor, reverse: bool) -> Iterable[int]:
    steps = range(int(sequence.shape[0]))
    return reversed(steps) if reverse else steps


def _held(new: Tensor, old: Tensor, mask: Tensor | None, step: int) -> Tensor:
    return new if mask is None else mask[step] * new + (1 - mask[step]) * old


def _stacked(steps: list[Tensors], reverse: bool) -> list[Tensor]:
    """What the steps gave, along time in the input's order."""
    ordered = steps[::-1] if reverse else steps
    return [torch.stack(values) for values in zip(*ordered, strict=True)]


@_kernel
def lstm(
    projected: Tensor,
    hidden: Tensor,
    memory: Tensor,
    weight: Tensor,
    projection: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`weight` [4 H, P], `projection` [P, H]; the input projection has both biases."""
    steps: list[Tensors] = []
    for step in _order(projected, reverse):
        gates = (projected[step] + F.linear(hidden, weight)).chunk(4, -1)
        entry, forget, exit_ = (gates[index].sigmoid() for index in (0, 1, 3))
        candidate = gates[2].tanh()
        new_memory = forget * memory + entry * candidate
        squashed = new_memory.tanh()
        output = exit_ * squashed
        if projection is not None:
            output = F.linear(output, projection)
        hidden = _held(output, hidden, mask, step)
        memory = _held(new_memory, memory, mask, step)
        steps.append((hidden, memory, entry, forget, candidate, exit_, squashed))
    return *_stacked(steps, reverse), hidden.clone(), memory.clone()


@_kernel
def lstm_backward(
    gradient: Tensor,
    to_hidden: Tensor,
    to_memory: Tensor,
    weight: Tensor,
    projection: Tensor | None,
    factors: list[Tensor],
    hold: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`factors` are those of the memory by the output, of the gates in torch's order by memory
    and output, and of the memory before by the memory.
    """
    to_squashed, to_entry, to_forget, to_candidate, to_exit, carried = factors
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        total = gradient[step] + to_hidden
        to_output = total if projection is None else total @ projection
        memory = to_output * to_squashed[step] + to_memory
        parts = [memory * part[step] for part in (to_entry, to_forget, to_candidate)]
        gates = torch.cat([*parts, to_output * to_exit[step]], -1)
        to_hidden = gates @ weight
        if hold is not None:
            to_hidden = to_hidden + total * hold[step]
        to_memory = memory * carried[step]
        steps.append((gates, total))
    return *_stacked(steps, not reverse), to_hidden, to_memory


@_kernel
def gru(
    projected: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`weight` [3 H, H]; `bias` [H] is the candidate's hidden one, the others were projected."""
    width = hidden.shape[-1]
    steps: list[Tensors] = []
    for step in _order(projected, reverse):
        gates = projected[step, :, : 2 * width] + F.linear(hidden, weight[: 2 * width])
        reset, update = gates.sigmoid().chunk(2, -1)
        recurrent = F.linear(hidden, weight[2 * width :], bias)
        candidate = (projected[step, :, 2 * width :] + reset * recurrent).tanh()
        hidden = _held(candidate + update * (hidden - candidate), hidden, mask, step)
        steps.append((hidden, reset, update, candidate, recurrent))
    return *_stacked(steps, reverse), hidden.clone()


@_kernel
def gru_backward(
    gradient: Tensor, to_hidden: Tensor, weight: Tensor, factors: list[Tensor], reverse: bool
) -> Tensors:
    """`factors` are those of the three recurrent products, and of the state before."""
    *to_gates, carried = factors
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        total = gradient[step] + to_hidden
        recurrent = torch.cat([total * part[step] for part in to_gates], -1)
        to_hidden = recurrent @ weight + total * carried[step]
        steps.append((recurrent, total))
    return *_stacked(steps, not reverse), to_hidden


@_kernel
def rnn(
    projected: Tensor,
    hidden: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    rectified: bool,
    reverse: bool,
) -> Tensors:
    """`weight` [H, H]; `rectified` chooses ReLU, else tanh."""
    steps: list[Tensors] = []
    for step in _order(projected, reverse):
        total = projected[step] + F.linear(hidden, weight)
        hidden = _held(total.relu() if rectified else total.tanh(), hidden, mask, step)
        steps.append((hidden,))
    return *_stacked(steps, reverse), hidden.clone()


@_kernel
def rnn_backward(
    gradient: Tensor,
    to_hidden: Tensor,
    weight: Tensor,
    factor: Tensor,
    hold: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`factor` is the slope of the activation at every step."""
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        total = gradient[step] + to_hidden
        inner = total * factor[step]
        to_hidden = inner @ weight
        if hold is not None:
            to_hidden = to_hidden + total * hold[step]
        steps.append((inner,))
    return *_stacked(steps, not reverse), to_hidden


@_shapes
def _lstm_shapes(projected: Tensor, hidden: Tensor, memory: Tensor, *_: Any) -> Tensors:
    memories = projected.new_empty([projected.shape[0], *memory.shape])
    kept = [torch.empty_like(memories) for _ in range(6)]
    hiddens = projected.new_empty([projected.shape[0], *hidden.shape])
    return hiddens, *kept, torch.empty_like(hidden), torch.empty_like(memory)


@_shapes
def _lstm_backward_shapes(
    gradient: Tensor, to_hidden: Tensor, to_memory: Tensor, weight: Tensor, *_: Any
) -> Tensors:
    to_projected = gradient.new_empty([*gradient.shape[:2], weight.shape[0]])
    results = (gradient, to_hidden, to_memory)
    return to_projected, *(torch.empty_like(value) for value in results)


@_shapes
def _gru_shapes(projected: Tensor, hidden: Tensor, *_: Any) -> Tensors:
    hiddens = projected.new_empty([projected.shape[0], *hidden.shape])
    return hiddens, *(torch.empty_like(hiddens) for _ in range(4)), torch.empty_like(hidden)


@_shapes
def _gru_backward_shapes(gradient: Tensor, to_hidden: Tensor, weight: Tensor, *_: Any) -> Tensors:
    to_recurrent = gradient.new_empty([*gradient.shape[:2], weight.shape[0]])
    return to_recurrent, torch.empty_like(gradient), torch.empty_like(to_hidden)


@_shapes
def _rnn_shapes(projected: Tensor, hidden: Tensor, *_: Any) -> Tensors:
    return torch.empty_like(projected), torch.empty_like(hidden)


@_shapes
def _rnn_backward_shapes(gradient: Tensor, to_hidden: Tensor, *_: Any) -> Tensors:
    return torch.empty_like(gradient), torch.empty_like(to_hidden)
