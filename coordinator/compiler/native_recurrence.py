"""torch's own recurrent operators, traced for torch in time that no length matters to.

Where tensors have no values torch composes `aten.lstm` and its kin of small operators, step by
step, and runs each, which takes seconds for a hundred steps. Here an operator with shapes and no
kernel stands in for each of them; in the finished trace it gives place to torch's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

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


def with_torchs_own(module: fx.GraphModule) -> fx.GraphModule:
    """The finished trace, in place, with torch's operators."""
    for node in module.graph.nodes:
        node.target = _REPLACED.get(node.target, node.target)
    module.recompile()
    return module
