"""Gradients of the recurrent operators: a recurrence backwards, then one product for each weight.

The gradient of a weight is a sum over steps and examples, so it waits until all steps are done.
Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE,
1990.
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


def _keep_lstm(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, _, weight, projection, mask, ctx.reverse = inputs
    hiddens, *kept = output[:7]
    ctx.save_for_backward(hidden, weight, projection, mask, hiddens, *kept)
    ctx.mark_non_differentiable(*kept)


def _lstm_gradients(ctx: Any, gradient: Tensor, *to_kept_and_last: Tensor) -> Gradients:
    hidden, weight, projection, mask, hiddens, *kept = ctx.saved_tensors
    to_projected, to_hiddens, to_hidden, to_memory = ops.lstm_backward(
        gradient, *to_kept_and_last[-2:], weight, projection, kept, mask, ctx.reverse
    )
    to_weight = _to_weight(to_projected, _before(hiddens, hidden, ctx.reverse))
    to_projection = None
    if projection is not None:
        exit_, squashed = kept[-2:]
        to_projection = _to_weight(to_hiddens, exit_ * squashed)
    return to_projected, to_hidden, to_memory, to_weight, to_projection, None, None


def _keep_gru(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, weight, bias, mask, ctx.reverse = inputs
    hiddens, *kept = output[:5]
    ctx.biased = bias is not None
    ctx.save_for_backward(hidden, weight, mask, hiddens, *kept)
    ctx.mark_non_differentiable(*kept)


def _gru_gradients(ctx: Any, gradient: Tensor, *to_kept_and_last: Tensor) -> Gradients:
    hidden, weight, mask, hiddens, *kept = ctx.saved_tensors
    before = _before(hiddens, hidden, ctx.reverse)
    to_recurrent, to_candidate, to_hidden = ops.gru_backward(
        gradient, to_kept_and_last[-1], weight, [before, *kept], mask, ctx.reverse
    )
    width = 2 * hidden.shape[-1]
    to_projected = torch.cat([to_recurrent[..., :width], to_candidate], -1)
    to_bias = to_recurrent[..., width:].sum((0, 1)) if ctx.biased else None
    return to_projected, to_hidden, _to_weight(to_recurrent, before), to_bias, None, None


def _keep_rnn(ctx: Any, inputs: Any, output: Any) -> None:
    _, hidden, weight, mask, ctx.rectified, ctx.reverse = inputs
    ctx.save_for_backward(hidden, weight, mask, output[0])


def _rnn_gradients(ctx: Any, gradient: Tensor, to_last: Tensor) -> Gradients:
    hidden, weight, mask, hiddens = ctx.saved_tensors
    to_projected, to_hidden = ops.rnn_backward(
        gradient, to_last, weight, hiddens, mask, ctx.rectified, ctx.reverse
    )
    to_weight = _to_weight(to_projected, _before(hiddens, hidden, ctx.reverse))
    return to_projected, to_hidden, to_weight, None, None, None


for _name, _gradients, _keep in (
    ("lstm", _lstm_gradients, _keep_lstm),
    ("gru", _gru_gradients, _keep_gru),
    ("rnn", _rnn_gradients, _keep_rnn),
):
    torch.library.register_autograd(f"headwater::{_name}", _gradients, setup_context=_keep)
