"""One step of a recurrent layer, as an author's own loop calls it.

torch's functions compare the batch sizes of input and state as numbers, which fixes the batch while
they are traced.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


def lstm_cell(
    features: Tensor,
    states: tuple[Tensor, Tensor],
    input_weight: Tensor,
    hidden_weight: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As torch.lstm_cell."""
    hidden, memory = states
    gates = F.linear(features, input_weight, input_bias)
    gates = gates + F.linear(hidden, hidden_weight, hidden_bias)
    entry, forget, candidate, exit_ = gates.chunk(4, -1)
    memory = forget.sigmoid() * memory + entry.sigmoid() * candidate.tanh()
    return exit_.sigmoid() * memory.tanh(), memory


def gru_cell(
    features: Tensor,
    hidden: Tensor,
    input_weight: Tensor,
    hidden_weight: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> Tensor:
    """As torch.gru_cell."""
    to_reset, to_update, to_candidate = F.linear(features, input_weight, input_bias).chunk(3, -1)
    reset, update, candidate = F.linear(hidden, hidden_weight, hidden_bias).chunk(3, -1)
    reset, update = (to_reset + reset).sigmoid(), (to_update + update).sigmoid()
    candidate = (to_candidate + reset * candidate).tanh()
    return candidate + update * (hidden - candidate)


def _rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """As torch.rnn_tanh_cell and rnn_relu_cell."""

    def cell(
        features: Tensor,
        hidden: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        input_bias: Tensor | None = None,
        hidden_bias: Tensor | None = None,
    ) -> Tensor:
        projected = F.linear(features, input_weight, input_bias)
        return activation(projected + F.linear(hidden, hidden_weight, hidden_bias))

    return cell


CELLS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
}
"""By the function of torch that each stands for."""
