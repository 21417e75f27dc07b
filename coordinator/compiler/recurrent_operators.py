"""Recurrent layers as single operators, so that a traced graph does not grow with the sequence.

`headwater::lstm`, `gru` and `rnn` run one layer in one direction over an input that was projected
beforehand, and keep what the backward pass reads. Each has a counterpart `..._backward`, a
recurrence in the opposite direction. Here they are defined and spelled out in torch, one step after
the other, which says what they mean; on devices they are Scans (`onnx_recurrence`).

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
    "Tensor? projection, Tensor[] kept, Tensor? mask, bool reverse) -> (Tensor to_projected, "
    "Tensor to_hiddens, Tensor to_hidden, Tensor to_memory)",
    "gru(Tensor projected, Tensor hidden, Tensor weight, Tensor? bias, Tensor? mask, bool reverse) "
    "-> (Tensor hiddens, Tensor reset, Tensor update, Tensor candidate, Tensor recurrent, "
    "Tensor last_hidden)",
    "gru_backward(Tensor gradient, Tensor to_hidden, Tensor weight, Tensor[] kept, Tensor? mask, "
    "bool reverse) -> (Tensor to_recurrent, Tensor to_candidate, Tensor to_hidden)",
    "rnn(Tensor projected, Tensor hidden, Tensor weight, Tensor? mask, bool rectified, "
    "bool reverse) -> (Tensor hiddens, Tensor last_hidden)",
    "rnn_backward(Tensor gradient, Tensor to_hidden, Tensor weight, Tensor hiddens, Tensor? mask, "
    "bool rectified, bool reverse) -> (Tensor to_projected, Tensor to_hidden)",
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


def _counted(total: Tensor, mask: Tensor | None, step: int) -> Tensor:
    """The part of a gradient that goes through the step; the rest passes it by."""
    return total if mask is None else mask[step] * total


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
    """`weight` [4 H, P], `projection` [P, H]; the input projection has both biases.

    `memories` are those that the steps started from.
    """
    steps: list[Tensors] = []
    for step in _order(projected, reverse):
        before = memory
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
        steps.append((hidden, before, entry, forget, candidate, exit_, squashed))
    return *_stacked(steps, reverse), hidden.clone(), memory.clone()


@_kernel
def lstm_backward(
    gradient: Tensor,
    to_hidden: Tensor,
    to_memory: Tensor,
    weight: Tensor,
    projection: Tensor | None,
    kept: list[Tensor],
    mask: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`kept` are the results of `lstm` from `memories` to `squashed`."""
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        before, entry, forget, candidate, exit_, squashed = (part[step] for part in kept)
        total = gradient[step] + to_hidden
        counted = _counted(total, mask, step)
        to_output = counted if projection is None else counted @ projection
        memory = to_memory + to_output * exit_ * (1 - squashed * squashed)
        to_new = _counted(memory, mask, step)
        gates = [
            to_new * candidate * entry * (1 - entry),
            to_new * before * forget * (1 - forget),
            to_new * entry * (1 - candidate * candidate),
            to_output * squashed * exit_ * (1 - exit_),
        ]
        to_gates = torch.cat(gates, -1)
        to_hidden = to_gates @ weight + (total - counted)
        to_memory = to_new * forget + (memory - to_new)
        steps.append((to_gates, counted))
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
    gradient: Tensor,
    to_hidden: Tensor,
    weight: Tensor,
    kept: list[Tensor],
    mask: Tensor | None,
    reverse: bool,
) -> Tensors:
    """`kept` are the states that the steps started from and what `gru` gives from `reset` on."""
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        before, reset, update, candidate, recurrent = (part[step] for part in kept)
        total = gradient[step] + to_hidden
        counted = _counted(total, mask, step)
        to_update = counted * (before - candidate) * update * (1 - update)
        to_candidate = counted * (1 - update) * (1 - candidate * candidate)
        to_product = to_candidate * reset
        to_reset = to_product * recurrent * (1 - reset)
        to_recurrent = torch.cat([to_reset, to_update, to_product], -1)
        to_hidden = to_recurrent @ weight + counted * update + (total - counted)
        steps.append((to_recurrent, to_candidate))
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
    hiddens: Tensor,
    mask: Tensor | None,
    rectified: bool,
    reverse: bool,
) -> Tensors:
    """`hiddens` are those that `rnn` gave."""
    steps: list[Tensors] = []
    for step in _order(gradient, not reverse):
        hidden = hiddens[step]
        total = gradient[step] + to_hidden
        counted = _counted(total, mask, step)
        inner = counted * (hidden.sign() if rectified else 1 - hidden * hidden)
        to_hidden = inner @ weight + (total - counted)
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
