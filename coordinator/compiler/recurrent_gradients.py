"""Gradients of the recurrent operators: factors for all steps at once, then one reverse recurrence.

Every gate is a function of the state before, so the gradient of a step is linear in the gradient of
its output. The factors of that linear map need no recurrence; they and the gradients of the weights
(one product over all steps and examples) are plain torch, only the rest is a `..._backward`
operator. Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the
IEEE, 1990.
"""

from typing import Any

import torch
from torch import Tensor

from coordinator.compiler import recurrent_operators  # noqa: F401 - defines the operators

ops = torch.ops.headwater
Gradients = tuple[Tensor | None, ...]


def _before(states: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The state that each step started from."""
    rows = first.unsqueeze(0)
    return torch.cat([states[1:], rows] if reverse else [rows, states[:-1]])


def _to_weight(to_product: Tensor, factor: Tensor) -> Tensor:
    """The gradient of a weight that was applied at every step: one product for all of them."""
    return to_product.flatten(0, 1).t() @ factor.flatten(0, 1)


def _masked(factors: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    return factors if mask is None else [factor * mask for factor in factors]


def _carried(factor: Tensor, mask: Tensor | None) -> Tensor:
    """How much of a state passes a step: all of it where the step is masked."""
    return factor if mask is None else factor * mask + (1 - mask)


def _keep_lstm(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, memory, weight, projection, mask, ctx.reverse = inputs
    hiddens, *kept = output[:7]
    ctx.save_for_backward(hidden, memory, weight, projection, mask, hiddens, *kept)
    ctx.mark_non_differentiable(*kept)


def _lstm_gradients(ctx: Any, gradient: Tensor, *to_kept_and_last: Tensor) -> Gradients:
    hidden, memory, weight, projection, mask, hiddens, *kept = ctx.saved_tensors
    memories, entry, forget, candidate, exit_, squashed = kept
    factors = [
        exit_ * (1 - squashed * squashed),
        candidate * entry * (1 - entry),
        _before(memories, memory, ctx.reverse) * forget * (1 - forget),
        entry * (1 - candidate * candidate),
        squashed * exit_ * (1 - exit_),
    ]
    factors = [*_masked(factors, mask), _carried(forget, mask)]
    to_projected, to_hiddens, to_hidden, to_memory = ops.lstm_backward(
        gradient, *to_kept_and_last[-2:], weight, projection, factors,
        None if mask is None else 1 - mask, ctx.reverse,
    )  # fmt: skip
    to_weight = _to_weight(to_projected, _before(hiddens, hidden, ctx.reverse))
    to_projection = None
    if projection is not None:
        to_projection = _to_weight(to_hiddens, *_masked([exit_ * squashed], mask))
    return to_projected, to_hidden, to_memory, to_weight, to_projection, None, None


def _keep_gru(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, weight, bias, mask, ctx.reverse = inputs
    hiddens, *kept = output[:5]
    ctx.biased = bias is not None
    ctx.save_for_backward(hidden, weight, mask, hiddens, *kept)
    ctx.mark_non_differentiable(*kept)


def _gru_gradients(ctx: Any, gradient: Tensor, *to_kept_and_last: Tensor) -> Gradients:
    hidden, weight, mask, hiddens, reset, update, candidate, recurrent = ctx.saved_tensors
    before = _before(hiddens, hidden, ctx.reverse)
    to_update = (before - candidate) * update * (1 - update)
    to_candidate = (1 - update) * (1 - candidate * candidate)
    to_product = to_candidate * reset
    to_reset = to_product * (1 - reset) * recurrent
    *factors, to_candidate = _masked([to_reset, to_update, to_product, to_candidate], mask)
    to_recurrent, to_hiddens, to_hidden = ops.gru_backward(
        gradient, to_kept_and_last[-1], weight, [*factors, _carried(update, mask)], ctx.reverse
    )
    width = 2 * hidden.shape[-1]
    to_projected = torch.cat([to_recurrent[..., :width], to_hiddens * to_candidate], -1)
    to_bias = to_recurrent[..., width:].sum((0, 1)) if ctx.biased else None
    return to_projected, to_hidden, _to_weight(to_recurrent, before), to_bias, None, None


def _keep_rnn(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, weight, mask, ctx.rectified, ctx.reverse = inputs
    ctx.save_for_backward(hidden, weight, mask, output[0])


def _rnn_gradients(ctx: Any, gradient: Tensor, to_last: Tensor) -> Gradients:
    hidden, weight, mask, hiddens = ctx.saved_tensors
    slope = hiddens.sign() if ctx.rectified else 1 - hiddens * hiddens
    to_projected, to_hidden = ops.rnn_backward(
        gradient, to_last, weight, *_masked([slope], mask),
        None if mask is None else 1 - mask, ctx.reverse,
    )  # fmt: skip
    to_weight = _to_weight(to_projected, _before(hiddens, hidden, ctx.reverse))
    return to_projected, to_hidden, to_weight, None, None, None


for _name, _gradients, _keep in (
    ("lstm", _lstm_gradients, _keep_lstm),
    ("gru", _gru_gradients, _keep_gru),
    ("rnn", _rnn_gradients, _keep_rnn),
):
    torch.library.register_autograd(f"headwater::{_name}", _gradients, setup_context=_keep)
