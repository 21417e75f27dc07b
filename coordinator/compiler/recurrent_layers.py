"""LSTM, GRU and RNN as layers of one operator for each direction.

torch runs all the layers in one call and draws dropout between them inside. Here each layer is a
call of its own, so that dropout is ours: a recurrent operator of ours where a model is traced for
ONNX, and torch's own kernel, or what stands for it, elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from coordinator.compiler import recurrent_gradients  # noqa: F401 - the operators have gradients
from coordinator.compiler.packed_sequences import step_mask
from headwater.errors import CompileError

Drop = Callable[[Tensor, float], Tensor]
Results = tuple[Tensor, ...]
Layer = Callable[["RecurrentCall"], Results]


@dataclass(frozen=True)
class RecurrentCall:
    """One call of torch.lstm, gru, rnn_tanh or rnn_relu, its arguments under names.

    `states` are the initial ones, each [layers * directions, batch, width]. `lengths` [batch] says
    how many steps of each example count, None that all do. `inputs` has time first, or is what
    torch packed.
    """

    kind: str
    inputs: Tensor
    states: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    biased: bool
    layers: int
    dropout: float
    bidirectional: bool
    lengths: Tensor | None = None

    @property
    def directions(self) -> int:
        """2 if a second run goes from the last step to the first."""
        return 2 if self.bidirectional else 1

    def weights_of(self, direction: int) -> tuple[Tensor, ...]:
        """The weights of one direction (0 or 1) of a call of one layer."""
        count = len(self.weights) // self.directions
        return self.weights[direction * count : (direction + 1) * count]

    def layer(self, index: int, inputs: Tensor) -> "RecurrentCall":
        """The call of one layer alone, for both directions."""
        runs = slice(index * self.directions, (index + 1) * self.directions)
        count = len(self.weights) // self.layers
        weights = self.weights[index * count : (index + 1) * count]
        states = tuple(state[runs] for state in self.states)
        return replace(self, inputs=inputs, states=states, weights=weights, layers=1, dropout=0.0)


def stacked(call: RecurrentCall, layer: Layer, drop: Drop) -> Results:
    """Layer upon layer: the last one's output, then the final states of all."""
    sequence, finals = call.inputs, []
    for index in range(call.layers):
        if index and call.dropout:
            sequence = drop(sequence, call.dropout)
        sequence, *final = layer(call.layer(index, sequence))
        finals.append(final)
    return sequence, *(torch.cat(states) for states in zip(*finals, strict=True))


def portable_layer(call: RecurrentCall) -> Results:
    """One layer in both directions by operators of ours.

    Raises:
        CompileError: the layer would run along the batch.
    """
    if not isinstance(call.inputs.shape[0], int):
        raise CompileError(
            "a recurrent layer runs along the batch: give it three dimensions, with "
            "batch_first=True where the batch comes first (an input without a batch is not "
            "supported), and a sequence of fixed length"
        )
    mask = None if call.lengths is None else step_mask(call.lengths, call.inputs)
    runs = [_direction(call, index, mask) for index in range(call.directions)]
    hiddens, *finals = zip(*runs, strict=True)
    sequence = hiddens[0] if len(hiddens) == 1 else torch.cat(hiddens, -1)
    return sequence, *(torch.stack(states) for states in finals)


def _direction(call: RecurrentCall, index: int, mask: Tensor | None) -> Results:
    input_weight, weight, *others = call.weights_of(index)
    input_bias, hidden_bias = others[:2] if call.biased else (None, None)
    projection = others[-1] if len(others) in (1, 3) else None
    hidden, *memory = (state[index] for state in call.states)
    reverse = index == 1
    if call.kind == "gru":
        bias = None
        if input_bias is not None and hidden_bias is not None:
            width = hidden.shape[-1]
            bias = hidden_bias[2 * width :]
            input_bias = input_bias + torch.cat([hidden_bias[: 2 * width], torch.zeros_like(bias)])
        projected = _projected(call.inputs, input_weight, input_bias)
        found = torch.ops.headwater.gru(projected, hidden, weight, bias, mask, reverse)
        return found[0], found[-1]
    if input_bias is not None and hidden_bias is not None:
        input_bias = input_bias + hidden_bias
    projected = _projected(call.inputs, input_weight, input_bias)
    if call.kind == "lstm":
        found = torch.ops.headwater.lstm(
            projected, hidden, *memory, weight, projection, mask, reverse
        )
        return found[0], *found[-2:]
    rectified = call.kind == "rnn_relu"
    return tuple(torch.ops.headwater.rnn(projected, hidden, weight, mask, rectified, reverse))


def _projected(sequence: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The input's part of all gates at all steps: one matrix product, with the bias inside."""
    rows = F.linear(sequence.flatten(0, 1), weight, bias)
    return rows.reshape(*sequence.shape[:2], -1)


def native_layer(function: Callable[..., Any], batch_sizes: Tensor | None = None) -> Layer:
    """A layer of torch's own, by the function that torch.nn calls; `batch_sizes` if packed."""

    def layer(call: RecurrentCall) -> Results:
        states: Any = call.states if call.kind == "lstm" else call.states[0]
        shared = (states, list(call.weights), call.biased, 1, 0.0, True, call.bidirectional)
        if batch_sizes is None:
            return tuple(function(call.inputs, *shared, False))
        return tuple(function(call.inputs, batch_sizes, *shared))

    return layer
