"""torch's own recurrent operators, traced for torch in time that no length matters to.

Where tensors have no values torch composes `aten.lstm` and its kin of small operators, step by
step, and runs each, which takes seconds for a hundred steps. Here an operator with shapes and no
kernel stands in for each of them; in the finished trace it gives place to torch's.

Sequences of unequal length run through the same operators, with zeros behind their end: what comes
out there is finite and masked, and the run from the last step to the first takes each sequence in
its own reversed order. The hidden state at the end is an output; the memory of an LSTM is none, so
one more input closes the input gates and opens the forget gates behind the end, which holds the
memory. Likewise it holds a rectified state, which could grow, at zero.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from coordinator.compiler.packed_sequences import step_mask
from coordinator.compiler.recurrent_layers import Layer, RecurrentCall, Results

_FAR = 1e30
"""Far more than what a state times its weights can be: a sigmoid is 1 there, and 0 of its negative.
"""

_SETTINGS = (
    "Tensor[] weights, bool biased, int layers, float dropout, bool training, bool bidirectional, "
    "bool batch_first"
)
_LIBRARY = torch.library.Library("headwater", "FRAGMENT")  # type: ignore[no-untyped-call]
_OWN = {"lstm": "Tensor, Tensor, Tensor"} | dict.fromkeys(
    ("gru", "rnn_tanh", "rnn_relu"), "Tensor, Tensor"
)


def _shapes(inputs: Tensor, states: Any, *settings: Any) -> tuple[Tensor, ...]:
    """Of the output and the final states."""
    finals = states if isinstance(states, list | tuple) else [states]
    bidirectional = settings[5]
    width = finals[0].shape[-1] * (2 if bidirectional else 1)
    output = inputs.new_empty([*inputs.shape[:-1], width])
    return output, *(torch.empty_like(state) for state in finals)


def _stand_in(name: str, results: str) -> OpOverload:
    states = "Tensor[] states" if name == "lstm" else "Tensor states"
    _LIBRARY.define(f"torch_{name}(Tensor inputs, {states}, {_SETTINGS}) -> ({results})")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"headwater::torch_{name}")(_shapes)
    found: OpOverload = getattr(torch.ops.headwater, f"torch_{name}").default
    return found


_STAND_INS = {name: _stand_in(name, results) for name, results in _OWN.items()}
_REPLACED = {operator: getattr(torch.ops.aten, name).input for name, operator in _STAND_INS.items()}


def stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """What to call in place of torch.lstm, gru, rnn_tanh or rnn_relu while they are traced."""
    return _STAND_INS[function.__name__]


def masked_layer(function: Callable[..., Any]) -> Layer:
    """A layer by a stand-in, for calls with lengths."""

    def layer(call: RecurrentCall) -> Results:
        assert call.lengths is not None
        runs = [_direction(function, call, call.lengths, at) for at in range(call.directions)]
        outputs, *finals = zip(*runs, strict=True)
        return torch.cat(outputs, -1), *(torch.cat(states) for states in finals)

    return layer


def _direction(
    function: Callable[..., Any], call: RecurrentCall, lengths: Tensor, index: int
) -> Results:
    weights = list(call.weights_of(index))
    states = [state[index : index + 1] for state in call.states]
    sequence, reverse = call.inputs, index == 1
    order = _own_order(lengths, int(sequence.shape[0]))
    if reverse:
        sequence = _taken(sequence, order)
    if call.kind in _HELD:
        sequence = torch.cat([sequence, 1 - step_mask(lengths, sequence)], -1)
        weights[0] = torch.cat([weights[0], _HELD[call.kind](weights[0])], 1)
    initial: Any = states if call.kind == "lstm" else states[0]
    output, _, *memory = function(
        sequence, initial, weights, call.biased, 1, 0.0, True, False, False
    )
    hidden = _taken(output, (lengths - 1).unsqueeze(0))
    return _taken(output, order) if reverse else output, hidden, *memory


def _own_order(lengths: Tensor, steps: int) -> Tensor:
    """[time, batch]: the steps of each example from its last to its first, then its padding."""
    step = torch.arange(steps, device=lengths.device).unsqueeze(1)
    return torch.where(step < lengths, lengths - 1 - step, step)


def _taken(sequence: Tensor, steps: Tensor) -> Tensor:
    return sequence.gather(0, steps.unsqueeze(-1).expand(-1, -1, int(sequence.shape[-1])))


def _held_memory(weight: Tensor) -> Tensor:
    """A column for the gates of an LSTM (input, forget, cell, output)."""
    closed = weight.new_full((int(weight.shape[0]) // 4, 1), -_FAR)
    as_it_is = torch.zeros_like(closed)
    return torch.cat([closed, -closed, as_it_is, as_it_is])


def _held_at_zero(weight: Tensor) -> Tensor:
    return weight.new_full((int(weight.shape[0]), 1), -_FAR)


_HELD = {"lstm": _held_memory, "rnn_relu": _held_at_zero}


def with_torchs_own(module: fx.GraphModule) -> fx.GraphModule:
    """The finished trace, in place, with torch's operators."""
    for node in module.graph.nodes:
        node.target = _REPLACED.get(node.target, node.target)
    module.recompile()
    return module
